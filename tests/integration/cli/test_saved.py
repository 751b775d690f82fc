from __future__ import annotations

import json

import pytest

from arcboxd.client.client import Client
from arcboxd.errors import MachineStateError
from tests.integration.cli.conftest import Arcbox
from tests.integration.cli.stub import StubDaemon


def state(arcbox: Arcbox) -> str:
    listed = json.loads(arcbox.run("ls", "--json").stdout)
    return str(listed[0]["state"])


def test_suspend_and_resume_with_progress_and_one_failure(
    arcbox: Arcbox, daemon: StubDaemon
) -> None:
    done = arcbox.run("suspend", "web")
    assert (done.returncode, done.stdout) == (0, b"web\n")
    assert done.stderr == b"web: building the image\n"
    assert b"web    suspended   2      2GiB" in arcbox.run("ls").stdout
    done = arcbox.run("machine", "suspend", "-q", "web", "db")
    assert (done.returncode, done.stdout) == (1, b"web\n"), "it is suspended already"
    assert done.stderr == b"arcbox: machine 'db' is stopped\n  hint: arcbox start db\n"
    done = arcbox.run("resume", "-q", "ghost", "web")
    assert (done.returncode, done.stdout) == (1, b"web\n")
    assert done.stderr == b"arcbox: no machine 'ghost'\n  hint: arcbox ls --all\n"
    assert state(arcbox) == "running"


def test_the_client_gives_values_and_the_daemons_errors(arcbox: Arcbox, daemon: StubDaemon) -> None:
    with Client(arcbox.home / "s" / "run" / "arcbox.sock") as client:
        assert client.suspend("web") == 1 << 30
        client.resume("web")
        with pytest.raises(MachineStateError) as caught:
            client.suspend("db")
        assert caught.value.hint == "arcbox start db"
        assert client.list_snapshots("web") == ()
        assert client.create_snapshot("web").name == "20231114-221320"


def test_snapshots_are_made_and_listed(arcbox: Arcbox, daemon: StubDaemon) -> None:
    assert arcbox.run("snapshot", "ls", "web").stdout == b"SNAPSHOT   CREATED   MEMORY\n"
    assert arcbox.run("snapshot", "ls", "--json", "web").stdout == b"[]\n"
    done = arcbox.run("snapshot", "create", "web")
    assert (done.returncode, done.stdout) == (0, b"20231114-221320\n")
    assert json.loads(arcbox.run("snapshot", "create", "web", "before", "--json").stdout) == {
        "name": "before",
        "created": "2023-11-14T22:13:21Z",
        "memory": True,
        "saved_bytes": 3 << 29,
    }
    lines = arcbox.run("snapshot", "ls", "web").stdout.decode().splitlines()
    assert lines[1].startswith("20231114-221320   ")
    assert lines[2].split()[0] == "before"
    assert lines[2].endswith(" ago   1.5GiB")
    listed = json.loads(arcbox.run("machine", "snapshot", "ls", "web", "--json").stdout)
    assert [s["name"] for s in listed] == ["20231114-221320", "before"]
    arcbox.run("snapshot", "create", "db", "cold")
    assert arcbox.run("snapshot", "ls", "db").stdout.splitlines()[1].endswith(b" ago   -")


def test_what_the_daemon_says_of_a_snapshots_name_is_told(
    arcbox: Arcbox, daemon: StubDaemon
) -> None:
    done = arcbox.run("snapshot", "create", "-q", "web", "No")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"arcbox: the name 'No' is not of a-z, 0-9 and '-'\n"
    arcbox.run("snapshot", "create", "-q", "web", "twice")
    assert arcbox.run("snapshot", "create", "-q", "web", "twice").returncode == 1
    assert arcbox.run("snapshot", "ls", "ghost").returncode == 1


def test_a_running_machine_is_brought_back_only_by_force(
    arcbox: Arcbox, daemon: StubDaemon
) -> None:
    arcbox.run("snapshot", "create", "-q", "web", "before")
    done = arcbox.run("snapshot", "restore", "-q", "web", "before")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"arcbox: machine 'web' is running\n  hint: add --force\n"
    assert state(arcbox) == "running"
    done = arcbox.run("snapshot", "restore", "--force", "web", "before")
    assert (done.returncode, done.stdout) == (0, b"before\n")
    assert state(arcbox) == "suspended"
    missing = arcbox.run("snapshot", "restore", "-q", "web", "after")
    assert missing.stderr == (
        b"arcbox: machine 'web' has no snapshot 'after'\n  hint: arcbox snapshot ls web\n"
    )


def test_several_snapshots_are_removed_and_one_failure_fails(
    arcbox: Arcbox, daemon: StubDaemon
) -> None:
    for name in ("a", "b", "c"):
        arcbox.run("snapshot", "create", "-q", "web", name)
    done = arcbox.run("snapshot", "rm", "web", "a", "ghost", "c")
    assert (done.returncode, done.stdout) == (1, b"a\nc\n")
    assert done.stderr.startswith(b"arcbox: machine 'web' has no snapshot 'ghost'\n")
    assert list(daemon.host.snapshots["id-web"]) == ["b"]


def test_a_clone_is_a_machine_with_an_id(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("clone", "web", "copy")
    assert (done.returncode, done.stdout) == (0, b"id-copy\n")
    assert json.loads(arcbox.run("clone", "-q", "--json", "id-web", "third").stdout) == {
        "id": "id-third",
        "name": "third",
    }
    taken = arcbox.run("clone", "-q", "web", "db")
    assert (taken.returncode, taken.stdout) == (1, b"")
    assert taken.stderr == b"arcbox: there is a machine 'db' already\n"
    assert arcbox.run("clone", "ghost", "x").returncode == 1


def test_inspect_tells_how_and_why_so_a_machine_booted(arcbox: Arcbox, daemon: StubDaemon) -> None:
    lines = arcbox.run("inspect", "web").stdout.decode().splitlines()
    assert [line.split(None, 1)[1] for line in lines if line.startswith("Boot:")] == [
        "template (0123456789ab fits)"
    ]
    extra = json.loads(arcbox.run("inspect", "--json", "web").stdout)["extra"]
    assert (extra["boot"], extra["boot_reason"]) == ("template", "0123456789ab fits")
