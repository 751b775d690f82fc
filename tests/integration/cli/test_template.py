from __future__ import annotations

import json

from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from tests.integration.cli.conftest import Arcbox
from tests.integration.cli.stub import StubDaemon
from tests.integration.cli.stub_saved import KEYS


def test_prepare_passes_every_option_and_prints_key_and_size(
    arcbox: Arcbox, daemon: StubDaemon
) -> None:
    done = arcbox.run(
        *("image", "prepare", "--distro", "debian", "--version", "12", "--arch", "x86_64"),
        *("--cpus", "3", "--memory", "1.5G", "--disk", "20GiB"),
    )
    assert (done.returncode, done.stdout) == (0, b"fedcba987654 1.5GiB\n")
    assert done.stderr == b"template: building the image\n"
    assert daemon.host.requests == [
        host_pb2.PrepareTemplateRequest(
            distro="debian",
            version="12",
            arch="x86_64",
            cpus=3,
            memory=3 << 29,
            disk_size=20 << 30,
        )
    ]


def test_prepare_without_options_leaves_all_to_the_daemon(
    arcbox: Arcbox, daemon: StubDaemon
) -> None:
    done = arcbox.run("image", "prepare", "--quiet", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    made = json.loads(done.stdout)
    assert (made["key"], made["memory_bytes"], made["current"]) == (KEYS[1], 2 << 30, True)
    assert daemon.host.requests == [host_pb2.PrepareTemplateRequest()]


def test_an_error_of_prepare_comes_after_the_progress(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("image", "prepare", "--distro", "void")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == (
        b"template: building the image\narcbox: there is no image of 'void'\n  hint: try debian\n"
    )


def test_templates_are_listed(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("template", "ls")
    assert (done.returncode, done.stderr) == (0, b"")
    header, old, new = (line.split("   ") for line in done.stdout.decode().splitlines())
    assert [cell.strip() for cell in header if cell.strip()] == [
        *("KEY", "IMAGE", "ARCH", "CPUS", "MEMORY", "DISK"),
        *("DOCKER", "SIZE", "MACHINES", "STAGED", "AGE", "CURRENT"),
    ]
    assert [cell.strip() for cell in new if cell.strip()] == [
        *("fedcba987654", "debian bookworm", "x86_64", "2", "2GiB", "64GiB"),
        *("yes", "1.5GiB", "3", "1", "2 hours", "yes"),
    ]
    assert (old[0], old[-1]) == ("0123456789ab", "no")


def test_templates_as_json(arcbox: Arcbox, daemon: StubDaemon) -> None:
    assert json.loads(arcbox.run("template", "ls", "--json").stdout)[0] == {
        "key": KEYS[0],
        "distro": "debian",
        "version": "bookworm",
        "arch": "x86_64",
        "cpus": 2,
        "memory_bytes": 2 << 30,
        "disk_bytes": 64 << 30,
        "allocated_bytes": 3 << 29,
        "machines": 3,
        "staged": 1,
        "created": "2023-11-14T22:13:20Z",
        "current": False,
        "runtime": False,
    }


def test_several_are_removed_and_one_failure_fails(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("template", "rm", "0123456789ab", "abcd", KEYS[1])
    assert (done.returncode, done.stdout) == (1, f"0123456789ab\n{KEYS[1]}\n".encode())
    assert done.stderr == b"arcbox: no template 'abcd'\n  hint: arcbox template ls\n"
    assert daemon.host.templates == {}


def test_what_is_no_key_is_refused_before_anything_is_removed(
    arcbox: Arcbox, daemon: StubDaemon
) -> None:
    done = arcbox.run("template", "rm", "0123456789ab", "web")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"arcbox: 'web' is not a template's key\n  hint: arcbox template ls\n"
    assert arcbox.run("template", "rm", "").returncode == 2
    assert list(daemon.host.templates) == list(KEYS)


def test_prune_says_what_was_removed_and_freed(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("template", "prune")
    assert (done.returncode, done.stdout) == (0, b"removed 0123456789ab\nfreed 1.5GiB\n")
    assert list(daemon.host.templates) == [KEYS[1]]
    assert arcbox.run("template", "prune").stdout == b"nothing to remove\n"
    none = json.loads(arcbox.run("template", "prune", "--json").stdout)
    assert none == {"keys": [], "freed_bytes": 0}
