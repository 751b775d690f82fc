"""Saved memories as files: whole or not there, and never shared in the wrong way."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from arcboxd import durable
from arcboxd.domain.machine import Boot
from arcboxd.errors import CorruptError, NoRoomError, StoreError
from arcboxd.machines import saved
from arcboxd.paths import MachinePaths, SavedPaths

FIELDS = {
    "format": 1,
    "machine_type": "pc-q35-7.2",
    "accelerator": "tcg",
    "kernel_version": "6.1",
    "arch": "x86_64",
    "cpus": 2,
    "memory_bytes": 1 << 30,
    "mac": "52:54:00:00:00:01",
    "uuid": "u",
    "cmdline": "",
    "balloon": False,
    "boot": "template",
    "boot_reason": "why",
    "data_disks": ["a"],
    "saved_unix_ns": 1,
    "files": {"state": 5, "kernel": 6},
}


@pytest.fixture
def memory(tmp_path: Path) -> SavedPaths:
    made = SavedPaths(tmp_path / "suspend")
    made.directory.mkdir()
    made.state.write_bytes(b"state")
    (tmp_path / "vmlinux").write_bytes(b"kernel")
    made.kernel.symlink_to(tmp_path / "vmlinux")
    made.manifest.write_text(json.dumps(FIELDS))
    return made


def test_a_manifest_is_read(memory: SavedPaths) -> None:
    found = saved.read(memory)
    assert (found.boot, found.data_disks, found.state_bytes) == (Boot.TEMPLATE, ("a",), 5)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"boot": "warm"},
        {"files": {"state": 4}},
        {"files": {"other": 0}},
        {"files": None},
        {"more": 1},
    ],
)
def test_what_is_not_as_it_was_saved_is_refused(
    memory: SavedPaths, change: dict[str, object]
) -> None:
    memory.manifest.write_text(json.dumps(FIELDS | change))
    with pytest.raises(CorruptError, match="suspend"):
        saved.read(memory)


@pytest.mark.parametrize("content", ["", "[]", "{", '"x"', "{}"])
def test_what_is_no_manifest_is_refused(memory: SavedPaths, content: str) -> None:
    memory.manifest.write_text(content)
    with pytest.raises(CorruptError):
        saved.read(memory)


def test_a_second_name_needs_no_room_and_stands_alone(memory: SavedPaths, tmp_path: Path) -> None:
    target = SavedPaths(tmp_path / "snapshot" / "memory")
    for _ in range(2):  # a second time in place of what a crash has left
        saved.link(memory, target)
    assert target.state.samefile(memory.state)
    assert target.kernel.is_symlink()
    assert target.kernel.read_bytes() == b"kernel"
    for path in memory.directory.iterdir():
        path.unlink()
    assert saved.read(target).state_bytes == 5


def test_a_used_memory_has_no_name(memory: SavedPaths, tmp_path: Path) -> None:
    paths = MachinePaths(tmp_path)
    paths.suspend_used.mkdir()
    (paths.suspend_used / "old").touch()
    saved.use_up(paths)
    assert not paths.suspended.exists()
    assert not (paths.suspend_used / "old").exists()
    saved.use_up(paths)
    assert not paths.suspend_used.exists()
    saved.clear(paths)
    assert not saved.left(paths)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, NoRoomError), (errno.EDQUOT, NoRoomError), (errno.EIO, StoreError)],
)
def test_errors_of_the_filesystem(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="cannot keep it"), durable.storing("keep it"):
        raise OSError(number, "words")


def test_a_write_replaces_at_one_stroke(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as before:
        durable.write(path, b"new")
        assert before.read() == "old"
    assert path.read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
