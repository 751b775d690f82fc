"""`arcbox mount` and `arcbox cp` as a user types them; the stub's guest is the host itself."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from arcboxd.wire.pb.arcbox.v1 import machine_pb2
from tests.integration.cli.conftest import Arcbox
from tests.integration.cli.stub import StubDaemon


def test_mounts_are_added_listed_and_removed(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("mount", "add", "web", "/a, b:/mnt/x y:ro")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"/mnt/x y\n", b"")
    arcbox.run("machine", "mount", "add", "web", "~/src:/broken")
    lines = arcbox.run("mount", "ls", "web").stdout.decode().splitlines()
    assert lines[0].split() == ["HOST", "GUEST", "MODE", "STATE"]
    assert lines[1].endswith("/mnt/x y   ro     mounted (9p)")
    assert lines[2].startswith(f"{arcbox.home}/src")
    assert lines[2].endswith("rw     failed: the host path is gone")
    listed = json.loads(arcbox.run("mount", "ls", "web", "--json").stdout)
    assert listed[0] == {
        "host_path": "/a, b",
        "guest_path": "/mnt/x y",
        "readonly": True,
        "filesystem": "9p",
        "state": "mounted",
        "detail": "",
    }
    done = arcbox.run("mount", "rm", "web", "/no", "/broken")
    assert (done.returncode, done.stdout) == (1, b"/broken\n")
    assert done.stderr == b"arcbox: machine 'web' has no mount there\n  hint: look\n"


@pytest.mark.parametrize("mount", ["/a", "/a:b", "/a:/b:rx", ":/b", os.fsdecode(b"/\xff:/b")])
def test_what_is_no_mount_is_a_usage_error(arcbox: Arcbox, daemon: StubDaemon, mount: str) -> None:
    done = arcbox.run("mount", "add", "web", mount)
    assert done.returncode == 2
    assert done.stderr.startswith(b"arcbox: the mount ")


def test_create_takes_mounts(arcbox: Arcbox, daemon: StubDaemon) -> None:
    assert (
        arcbox.run("create", "new", "-q", "--mount", "/a:/b:ro", "--mount", "/c:/d").returncode == 0
    )
    (request,) = [r for verb, r in daemon.machines.calls if verb == "create"]
    assert isinstance(request, machine_pb2.CreateMachineRequest)
    assert [(m.host_path, m.guest_path, m.readonly) for m in request.mounts] == [
        ("/a", "/b", True),
        ("/c", "/d", False),
    ]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "big ü").write_bytes(os.urandom(1_000_001))
    (top / "link").symlink_to("sub/big ü")
    (top / "hard").hardlink_to(top / "sub" / "big ü")
    return top


def same(one: Path, other: Path) -> None:
    subprocess.run(["diff", "-r", "--no-dereference", one, other], check=True)


@pytest.mark.parametrize("way", ["in", "out"])
def test_trees_are_copied_by_the_rules_of_cp(
    arcbox: Arcbox, daemon: StubDaemon, tree: Path, tmp_path: Path, way: str
) -> None:
    def cp(source: str, target: str) -> subprocess.CompletedProcess[bytes]:
        ends = (source, f"web:{target}") if way == "in" else (f"web:{source}", target)
        return arcbox.run("cp", *ends)

    target = tmp_path / "target"
    done = cp(str(tree), str(target))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    same(tree, target)
    assert cp(str(tree), str(target)).returncode == 0
    same(tree, target / "tree")
    other = tmp_path / "other"
    other.mkdir()
    assert cp(f"{tree}/.", str(other)).returncode == 0
    same(tree, other)
    assert cp(f"{tree}/link", f"{other}/again").returncode == 0
    assert str((other / "again").readlink()) == "sub/big ü"
    assert cp(f"{tree}/hard", f"{other}/").returncode == 0
    assert cp(f"{tree}/", f"{other}/named").returncode == 0
    same(tree, other / "named")
    for source, wrong, words in (
        (f"{tree}/nothing", str(other), b"no such file"),
        (f"{tree}/hard/", str(other), b"no such"),
        (str(tree), f"{other}/hard", b"over the file"),
        (str(tree), f"{other}/no/where", b"there is no directory"),
        (f"{tree}/hard", f"{other}/no/", b"no such directory"),
    ):
        failed = cp(source, wrong)
        assert (failed.returncode, failed.stdout) == (1, b"")
        assert words in failed.stderr, failed.stderr
        assert failed.stderr.startswith(b"arcbox: cannot copy ")
    same(tree, target / "tree")


def test_the_guests_own_words_are_told(arcbox: Arcbox, daemon: StubDaemon, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "d" / "f").mkdir(parents=True)
    (tmp_path / "d" / "f" / "x").touch()
    done = arcbox.run("cp", str(tmp_path / "f"), f"web:{tmp_path}/d")
    assert done.returncode == 1
    assert b"tar in machine 'web' says" in done.stderr


def test_exactly_one_end_is_in_a_machine(arcbox: Arcbox, daemon: StubDaemon) -> None:
    for ends in (("a", "b"), ("web:/a", "db:/b"), ("web:a", "b")):
        assert arcbox.run("cp", *ends).returncode == 2
    gone = arcbox.run("cp", "ghost:/a", ".")
    assert (gone.returncode, gone.stderr[:27]) == (1, b"arcbox: no machine 'ghost'\n")
