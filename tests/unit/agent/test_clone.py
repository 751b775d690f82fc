"""A clone's identity, files written within their inode, and what begins when it has one."""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path

import pytest

from arcbox_agent import accounts, files
from arcbox_agent import clone as clone_module
from arcbox_agent.accounts import ensure_user
from arcbox_agent.cgroup import Cgroups
from arcbox_agent.clone import Clone
from arcbox_agent.kernel import NoKernel
from arcbox_agent.network import parse_address, parse_cidr


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    (tmp_path / "run/arcbox").mkdir(parents=True)
    clone = Clone(NoKernel(), Cgroups(""), str(tmp_path))
    clone.settle([])
    return clone


def test_each_identity_has_a_boot_id_of_its_own(clone: Clone, tmp_path: Path) -> None:
    own = tmp_path / "run/arcbox/boot_id"
    inode = own.stat().st_ino
    seen = {clone.boot_id()}
    for number in range(5):
        clone.identify(f"{number:032x}")
        assert uuid.UUID(clone.boot_id()).version == 4
        assert uuid.UUID(clone.boot_id()).variant == uuid.RFC_4122
        seen.add(clone.boot_id())
    assert len(seen) == 6
    assert own.stat().st_ino == inode  # it is mounted elsewhere
    product = tmp_path / "run/arcbox/product_uuid"
    if product.exists():  # this host has one
        assert product.read_text() == "00000000-0000-0000-0000-000000000004\n"


async def test_what_waits_begins_once(clone: Clone, tmp_path: Path) -> None:
    os.mkfifo(clone.fifo)
    reader = os.open(clone.fifo, os.O_RDONLY | os.O_NONBLOCK)
    begun: list[int] = []
    clone.begin()  # nobody has said who it is
    assert (tmp_path / "run/arcbox/settled").exists()
    clone.begin_later(lambda: begun.append(1))
    clone.begin()
    clone.begin()
    assert begun == [1]
    assert os.read(reader, 100) == b"go\n"
    os.close(reader)
    assert not (tmp_path / "run/arcbox/settled").exists()


async def test_what_begins_waits_for_a_command_but_not_for_ever(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clone_module, "_LATER_S", 0.001)
    begun = asyncio.Event()
    clone.calls = 1
    clone.begin_later(begun.set)
    clone.begin_soon()
    await asyncio.sleep(0.02)
    assert not begun.is_set()
    clone.calls = 0
    async with asyncio.timeout(5):
        await begun.wait()
    monkeypatch.setattr(clone_module, "_LATEST_S", 0.01)
    begun.clear()
    clone.calls = 1
    clone.begin_later(begun.set)
    clone.begin_soon()
    async with asyncio.timeout(5):
        await begun.wait()


async def test_without_the_daemon_it_begins_by_itself(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clone_module, "_ALONE_S", 0.01)
    begun = asyncio.Event()
    clone.begin_soon()  # nothing waits yet
    clone.begin_later(begun.set)
    async with asyncio.timeout(5):
        await begun.wait()


@pytest.mark.parametrize("old", ["", "x", "longer than before", "same size"])
def test_a_file_is_overwritten_within_its_inode(tmp_path: Path, old: str) -> None:
    path = tmp_path / "file"
    path.write_text(old)
    inode = path.stat().st_ino
    assert files.overwrite(str(path), "the new 1", mode=0o600)
    assert (path.read_text(), path.stat().st_ino) == ("the new 1", inode)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not files.overwrite(str(path), "the new 1")


@pytest.mark.parametrize("kind", ["missing", "link", "hard link", "fifo"])
def test_what_is_no_plain_file_is_replaced(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    other.write_text("precious")
    match kind:
        case "link":
            path.symlink_to(other)
        case "hard link":
            path.hardlink_to(other)
        case "fifo":
            os.mkfifo(path)
        case _:
            assert not path.exists()
    files.overwrite(str(path), "new")
    assert path.read_text() == "new"
    assert path.is_file()
    assert not path.is_symlink()
    assert other.read_text() == "precious"


def test_a_known_user_is_made_again_when_something_has_changed(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    (etc / "sudoers.d").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (etc / "group").write_text("root:x:0:\nsudo:x:27:\n")
    first = ensure_user(str(tmp_path), "me", 1234)
    rule = etc / "sudoers.d/90-arcbox"
    stamp = rule.stat().st_mtime_ns
    assert ensure_user(str(tmp_path), "me", 1234) is first
    assert rule.stat().st_mtime_ns == stamp
    for change in (
        rule.unlink,
        lambda: (etc / "group").write_text("root:x:0:\nsudo:x:27:\nme:x:1234:\nmore:x:9:\n"),
        (tmp_path / "home/me").rmdir,
    ):
        change()
        again = ensure_user(str(tmp_path), "me", 1234)
        assert (again.uid, again.gid) == (1234, 1234)
        assert rule.exists()
        assert "sudo:x:27:me\n" in (etc / "group").read_text()
        assert (tmp_path / "home/me").is_dir()
    assert accounts.ensure_user(str(tmp_path), "me", 0).uid == 1234


@pytest.mark.parametrize(
    ("text", "address", "mask"),
    [
        ("10.0.2.15/24", "10.0.2.15", "255.255.255.0"),
        ("10.0.2.15/1", "10.0.2.15", "128.0.0.0"),
        ("10.0.2.15/32", "10.0.2.15", "255.255.255.255"),
        ("10.0.2.15/9", "10.0.2.15", "255.128.0.0"),
    ],
)
def test_networks(text: str, address: str, mask: str) -> None:
    assert parse_cidr(text) == (parse_address(address), parse_address(mask))


@pytest.mark.parametrize(
    "text", ["", "10.0.2.15", "10.0.2.15/", "10.0.2.15/33", "10.0.2.15/-1", "10.0.2/8", "::1/64"]
)
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(ValueError, match="no"):
        parse_cidr(text)
