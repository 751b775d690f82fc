from __future__ import annotations

import json
import os
import pty
import subprocess

from arcboxd.wire.pb.arcbox.v1 import machine_pb2
from tests.integration.cli.conftest import Arcbox
from tests.integration.cli.stub import StubDaemon


def test_ls_shows_what_runs_and_all_with_a(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("ls")
    lines = done.stdout.decode().splitlines()
    assert (done.returncode, done.stderr) == (0, b"")
    assert lines[0].split() == ["NAME", "STATE", "CPUS", "MEMORY", "DISK", "ADDRESS", "CREATED"]
    assert lines[1].startswith("web    running   2      2GiB     20GiB   10.0.2.15   ")
    assert len(lines) == 2
    assert len(arcbox.run("machine", "ls", "-a").stdout.splitlines()) == 3
    assert arcbox.run("ls", "-aq").stdout == b"id-web\nid-db\n"


def test_ls_json_is_stable(arcbox: Arcbox, daemon: StubDaemon) -> None:
    assert json.loads(arcbox.run("ls", "--json").stdout) == [
        {
            "id": "id-web",
            "name": "web",
            "state": "running",
            "cpus": 2,
            "memory_bytes": 1 << 31,
            "disk_bytes": 20 << 30,
            "address": "10.0.2.15",
            "created": "2023-11-14T22:13:20Z",
        }
    ]


def test_create_passes_every_option_and_prints_the_id(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run(
        *("create", "new", "--cpus", "3", "--memory", "1.5G", "--disk", "20GiB"),
        *("--distro", "debian", "--version", "12", "--arch", "x86_64", "--kernel", "/k"),
        *("--cmdline", "quiet", "--ssh-key", "-", "--mount", "/a:/b", "--mount", "/c:/d:ro"),
        "--start",
        stdin=b"ssh-ed25519 AAAA me@here\n",
    )
    assert (done.returncode, done.stdout) == (0, b"id-new\n")
    assert done.stderr == b"new: building the image\n" * 2
    assert [name for name, _ in daemon.machines.calls] == ["create", "start"]
    assert daemon.machines.calls[0][1] == machine_pb2.CreateMachineRequest(
        name="new",
        cpus=3,
        memory=3 << 29,
        disk_size=20 << 30,
        distro="debian",
        version="12",
        arch="x86_64",
        kernel="/k",
        cmdline="quiet",
        ssh_public_key="ssh-ed25519 AAAA me@here",
        mounts=[
            machine_pb2.DirectoryMount(host_path="/a", guest_path="/b"),
            machine_pb2.DirectoryMount(host_path="/c", guest_path="/d", readonly=True),
        ],
    )


def test_wait_tells_what_failed(arcbox: Arcbox, daemon: StubDaemon) -> None:
    said = b"these services failed: cups.service, \\x1b[2J\n"
    done = arcbox.run("start", "-q", "--wait", "web")
    assert (done.returncode, done.stdout) == (0, b"web\n")
    assert done.stderr == b"arcbox: in web, " + said
    done = arcbox.run("create", "new", "-q", "--wait")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        b"id-new\n",
        b"arcbox: in new, " + said,
    )
    assert arcbox.run("restart", "-q", "--wait", "web").stderr == b"arcbox: in web, " + said
    assert arcbox.run("start", "-q", "web").stderr == b""
    assert daemon.host.waited == ["web", "id-new", "web"]
    assert [name for name, _ in daemon.machines.calls].count("start") == 4


def test_an_error_of_the_daemon_comes_with_its_hint_after_the_progress(
    arcbox: Arcbox, daemon: StubDaemon
) -> None:
    done = arcbox.run("create", "toobig")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == (
        "toobig: building the image\narcbox: no room for the disk of 'toobig'\n  hint: free some\n"
    )
    assert arcbox.run("create", "toobig", "--quiet").stderr.startswith(b"arcbox: no room")


def test_bars_on_a_terminal_leave_it_clean_for_the_error(
    arcbox: Arcbox, daemon: StubDaemon
) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        arcbox.argv("create", "toobig"), env=arcbox.env, stderr=theirs, timeout=15, check=False
    )
    os.close(theirs)
    screen = b""
    try:
        while piece := os.read(ours, 65536):
            screen += piece
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert done.returncode == 1
    assert b"building the image" in screen
    assert screen.endswith(b"arcbox: no room for the disk of 'toobig'\r\n  hint: free some\r\n")
    assert b"\x1b[?25h" in screen, "the cursor is shown again"


def test_several_names_each_is_done_and_one_failure_fails(
    arcbox: Arcbox, daemon: StubDaemon
) -> None:
    done = arcbox.run("rm", "--force", "--volumes", "web", "ghost", "db")
    assert (done.returncode, done.stdout) == (1, b"web\ndb\n")
    assert done.stderr == b"arcbox: no machine 'ghost'\n  hint: arcbox ls --all\n"
    request = daemon.machines.calls[0][1]
    assert request == machine_pb2.RemoveMachineRequest(id="web", force=True, volumes=True)


def test_restart_stops_then_starts(arcbox: Arcbox, daemon: StubDaemon) -> None:
    assert arcbox.run("restart", "-q", "web").stdout == b"web\n"
    assert [name for name, _ in daemon.machines.calls] == ["stop", "start"]


def test_inspect_ping_info_as_json(arcbox: Arcbox, daemon: StubDaemon) -> None:
    details = json.loads(arcbox.run("inspect", "web", "--json").stdout)
    assert details["memory_bytes"] == 1 << 31
    assert (details["created"], details["started"]) == ("2023-11-14T22:13:20Z", None)
    assert details["extra"]["ssh_port"] == 2222
    assert json.loads(arcbox.run("ping", "--json", "web").stdout).keys() == {
        "time_ms",
        "message",
        "version",
    }
    assert json.loads(arcbox.run("info", "web", "--json").stdout)["total_memory_bytes"] == 1 << 30


def test_a_guest_cannot_drive_the_terminal(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("info", "web")
    assert b"\x1b" not in done.stdout
    assert b"\\x1b[2Jevil" in done.stdout


def test_usage_errors_end_with_2_and_errors_with_1(arcbox: Arcbox, daemon: StubDaemon) -> None:
    assert arcbox.run("ls", "--nope").returncode == 2
    bad_size = arcbox.run("create", "x", "--memory", "2X")
    assert bad_size.returncode == 2
    assert bad_size.stderr.startswith(b"arcbox: --memory '2X' is not a size\n  hint: ")
    assert arcbox.run("create", "x", "--cpus", "two").returncode == 2
    missing = arcbox.run("inspect", "ghost")
    assert (missing.returncode, missing.stderr.splitlines()[0]) == (
        1,
        b"arcbox: no machine 'ghost'",
    )


def test_a_closed_pipe_is_quiet(arcbox: Arcbox, daemon: StubDaemon) -> None:
    read, write = os.pipe()
    os.close(read)
    process = arcbox.popen("ls", "--json", stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    _, errors = process.communicate(timeout=15)
    assert (process.returncode, errors) == (141, b"")


def test_ssh_is_the_real_one_with_the_command_after_a_double_dash(
    arcbox: Arcbox, daemon: StubDaemon
) -> None:
    (arcbox.home / "ssh").write_text('#!/bin/sh\nprintf "%s|" "$@"\nexit 9\n')
    (arcbox.home / "ssh").chmod(0o755)
    path = {"PATH": f"{arcbox.home}:{os.environ['PATH']}"}
    done = arcbox.run("ssh", "web", "--", "ls", "-l", env=path)
    assert (done.returncode, done.stdout) == (9, b"-p|2222|me@127.0.0.1|--|ls|-l|")
    assert arcbox.run("ssh", "web", env=path).stdout == b"-p|2222|me@127.0.0.1|"


def test_listing_needs_neither_pydantic_nor_rich(arcbox: Arcbox, daemon: StubDaemon) -> None:
    # Each costs more time than all the rest of the command.
    code = (
        "import sys; from arcboxd.cli.main import run; run(['--home', sys.argv[1], 'ls', '-a']);"
        "print([m for m in ('pydantic', 'rich') if m in sys.modules])"
    )
    done = subprocess.run(
        [*arcbox.argv()[:1], "-c", code, str(arcbox.home / "s")],
        env=arcbox.env,
        capture_output=True,
        timeout=15,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == b"[]"
