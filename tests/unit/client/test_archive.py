"""Tar streams, of honest trees and of hostile guests."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcboxd.client import archive
from arcboxd.errors import CorruptError, PreconditionError

OWNER = (os.getuid(), os.getgid())


def never(name: str, why: str) -> None:
    raise AssertionError((name, why))


def chopped(data: bytes, size: int = 300) -> Iterator[bytes]:
    for begin in range(0, len(data), size):
        yield data[begin : begin + size]


def unpacked(data: bytes, target: Path, name: str = "", *, tree: bool = True) -> int:
    return sum(archive.unpack(chopped(data), target, name, never, tree=tree))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "sub" / "empty").mkdir(parents=True)
    (top / "sub" / "ünï\ncode").write_bytes(os.urandom(100_001))
    (top / "run").write_text("#!/bin/sh\n")
    (top / "run").chmod(0o4751)
    (top / "again").hardlink_to(top / "run")
    (top / "link").symlink_to("../" * 60 + "etc/passwd")
    (top / ("n" * 255)).write_text("n")
    (top / os.fsdecode(b"no utf-8 \xff")).touch()
    (top / "sub").chmod(0o555)
    return top


def facts(top: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        s = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(s.st_mode) else b""
        link = path.readlink() if path.is_symlink() else None
        mode = s.st_mode & (0o777 if stat.S_ISREG(s.st_mode) else 0o170777)
        found[str(path.relative_to(top))] = (mode, int(s.st_mtime), data, link)
    return found


def test_a_tree_comes_out_as_it_went_in(tree: Path, tmp_path: Path) -> None:
    data = b"".join(archive.pack(tree, ".", OWNER, never))
    assert len(data) % archive.BLOCK == 0
    target = tmp_path / "target"
    target.mkdir()
    total = unpacked(data, target, "copy")
    assert facts(target / "copy") == facts(tree)
    assert total == 100_001 + len("#!/bin/sh\n") + 1
    assert archive.size_bytes(tree) == total + len("#!/bin/sh\n"), "a hard link counts each time"
    assert (target / "copy" / "again").samefile(target / "copy" / "run")
    assert stat.S_IMODE((target / "copy" / "run").stat().st_mode) == 0o751, "never set-user-id"
    # Once more, over itself: files are replaced, directories are kept.
    before = (target / "copy").stat().st_ino
    unpacked(data, target, "copy")
    assert facts(target / "copy") == facts(tree)
    assert (target / "copy").stat().st_ino == before


def test_other_programs_read_what_is_packed(tree: Path) -> None:
    data = b"".join(archive.pack(tree, "top", (1000, 100), never))
    with tarfile.open(fileobj=io.BytesIO(data)) as read:
        members = {member.name: member for member in read.getmembers()}
    assert members["top"].isdir()
    assert members["top/run"].islnk() != members["top/again"].islnk()
    assert {(m.uid, m.gid) for m in members.values()} == {(1000, 100)}
    assert f"top/{'n' * 255}" in members


def test_the_contents_of_a_directory_have_no_name_of_its_own(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o711)
    unpacked(b"".join(archive.pack(tree, "", OWNER, never)), target)
    assert facts(target) == facts(tree)
    assert stat.S_IMODE(target.stat().st_mode) == 0o711


def test_what_cannot_be_copied_is_told_and_the_rest_is_copied(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tree / "fifo")
    told: list[tuple[str, str]] = []
    opened = os.open

    def refuse(path: str, *args: int, **more: int) -> int:
        if str(path).endswith("/again"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **more)

    monkeypatch.setattr(os, "open", refuse)
    data = b"".join(archive.pack(tree, "t", OWNER, lambda *what: told.append(what)))
    monkeypatch.undo()
    assert told == [
        (f"{tree}/again", "Permission denied"),
        (f"{tree}/fifo", "it is neither a file nor a directory nor a link"),
    ]
    with tarfile.open(fileobj=io.BytesIO(data)) as read:
        assert read.getmember("t/run").isreg(), "its other name is not there to be linked to"
        assert "t/sub/empty" in read.getnames()


def test_a_file_that_shrinks_leaves_the_stream_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(b"x" * 2000)
    told: list[str] = []
    pieces = archive.pack(tmp_path / "f", "f", OWNER, lambda _name, why: told.append(why))
    first = next(pieces)
    os.truncate(tmp_path / "f", 100)
    data = first + b"".join(pieces)
    with tarfile.open(fileobj=io.BytesIO(data)) as read:
        assert read.getmember("f").size == 2000
    assert told == ["it became shorter while it was read"]


def stream(*members: tuple[dict[str, object], bytes]) -> bytes:
    """Write a stream as an attacker would."""
    data = b""
    for fields, contents in members:
        info = tarfile.TarInfo()
        info.mode = 0o755
        for name, value in fields.items():
            setattr(info, name, value)
        info.size = info.size or len(contents)
        data += info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        data += contents + b"\0" * (-len(contents) % archive.BLOCK)
    return data + bytes(1024)


FILE, FOLDER = tarfile.REGTYPE, tarfile.DIRTYPE
LINK, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE
NAMED = tarfile.GNUTYPE_LONGNAME
HOSTILE: dict[str, bytes] = {
    "absolute": stream(({"name": "/OUT/evil"}, b"x")),
    "parent": stream(({"name": "../evil"}, b"x")),
    "parent within": stream(({"name": "a/../../evil"}, b"x")),
    "through a link": stream(
        ({"name": "l", "type": LINK, "linkname": "/OUT"}, b""), ({"name": "l/evil"}, b"x")
    ),
    "through a link of a link": stream(
        ({"name": "a", "type": LINK, "linkname": "b"}, b""),
        ({"name": "b", "type": LINK, "linkname": ".."}, b""),
        ({"name": "a/evil"}, b"x"),
    ),
    "a directory over a link": stream(
        ({"name": "l", "type": LINK, "linkname": "/OUT"}, b""),
        ({"name": "l", "type": FOLDER}, b""),
        ({"name": "l/evil"}, b"x"),
    ),
    "a link over an open directory": stream(
        ({"name": "d", "type": FOLDER}, b""),
        ({"name": "d", "type": LINK, "linkname": "/OUT"}, b""),
        ({"name": "d/evil"}, b"x"),
    ),
    "a hard link to the outside": stream(
        ({"name": "h", "type": HARD, "linkname": "/OUT/victim"}, b""), ({"name": "h"}, b"x")
    ),
    "a hard link through a link": stream(
        ({"name": "l", "type": LINK, "linkname": "/OUT"}, b""),
        ({"name": "h", "type": HARD, "linkname": "l/victim"}, b""),
    ),
    "a hard link upwards": stream(({"name": "h", "type": HARD, "linkname": "../victim"}, b"")),
    "a long name upwards": stream(
        ({"name": "x", "type": NAMED}, b"../evil\0"), ({"name": "short"}, b"x")
    ),
    "a name of gigabytes": stream(({"name": "x", "type": NAMED, "size": 8 << 30}, b"")),
    "no archive": b"not a header, " * 100,
    "cut": stream(({"name": "f"}, b"x" * 5000))[:1200],
    "too deep": stream(({"name": "d/" * 500 + "f"}, b"x")),
    "empty": b"",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_is_written_outside(what: str, tmp_path: Path) -> None:
    out, target = tmp_path / "out", tmp_path / "target"
    out.mkdir()
    target.mkdir()
    (out / "victim").write_text("whole")
    (tmp_path / "victim").write_text("whole")
    with pytest.raises((CorruptError, PreconditionError, FileNotFoundError)):
        unpacked(_placed(HOSTILE[what], out), target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "target", "victim"]
    assert [p.name for p in out.iterdir()] == ["victim"]
    for victim in (out / "victim", tmp_path / "victim"):
        assert victim.read_text() == "whole"
        assert victim.stat().st_nlink == 1


def _placed(data: bytes, out: Path) -> bytes:
    """Put the directory that the test has in the place of /OUT."""
    blocks = [data[i : i + 512] for i in range(0, len(data), 512)]
    for number, block in enumerate(blocks):
        if b"/OUT" in block and block[257:262] == b"ustar":
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            info.name = info.name.replace("/OUT", str(out))
            info.linkname = info.linkname.replace("/OUT", str(out))
            blocks[number] = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return b"".join(blocks)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_streams_are_refused_or_harmless(data: st.DataObject) -> None:
    members = stream(
        ({"name": "d", "type": FOLDER}, b""),
        ({"name": "d/f"}, b"x" * 700),
        ({"name": "d/l", "type": LINK, "linkname": "f"}, b""),
        ({"name": "d/h", "type": HARD, "linkname": "d/f"}, b""),
        ({"name": "x", "type": NAMED}, b"d/longer\0"),
        ({"name": "short"}, b"y"),
    )
    damaged = bytearray(members)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for begin in range(0, len(damaged), archive.BLOCK):
        block = damaged[begin : begin + archive.BLOCK]
        if any(block[:2]) and block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            damaged[begin + 148 : begin + 156] = b"%06o\0 " % sum(block)
    with tempfile.TemporaryDirectory() as top:
        (target := Path(top, "target")).mkdir()
        pieces = chopped(bytes(damaged))
        with suppress(CorruptError, PreconditionError, OSError):
            for _ in archive.unpack(pieces, target, "t", lambda *_: None, tree=True):
                pass
        assert [p.name for p in Path(top).iterdir()] == ["target"]
        assert {p.name for p in target.iterdir()} <= {"t"}


def test_devices_of_a_guest_are_left_out(tmp_path: Path) -> None:
    told: list[str] = []
    data = stream(
        ({"name": "null", "type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, b""),
        ({"name": "pipe", "type": tarfile.FIFOTYPE}, b""),
        ({"name": "file"}, b"x"),
    )
    for _ in archive.unpack(iter([data]), tmp_path, "", lambda n, _: told.append(n), tree=True):
        pass
    assert told == ["null", "pipe"]
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_is_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "f").write_text("mine")
    with pytest.raises(PreconditionError, match="d is a directory here"):
        unpacked(stream(({"name": "d"}, b"x")), tmp_path)
    with pytest.raises(PreconditionError, match="'f' is no directory here"):
        unpacked(stream(({"name": "f/x"}, b"x")), tmp_path)
    assert (tmp_path / "f").read_text() == "mine"


def test_one_file_gets_the_name_that_was_asked_for(tmp_path: Path) -> None:
    unpacked(stream(({"name": "./theirs"}, b"x")), tmp_path, "ours", tree=False)
    assert [p.name for p in tmp_path.iterdir()] == ["ours"]
    outside = stream(({"name": "../../theirs"}, b"x"))
    with pytest.raises(CorruptError):
        unpacked(outside, tmp_path, "ours", tree=False)


def test_memory_stays_bounded_by_what_a_header_claims(tmp_path: Path) -> None:
    claimed = stream(({"name": "f", "size": 1 << 40}, b""))
    with pytest.raises(CorruptError, match="ended in the middle"):
        unpacked(claimed, tmp_path)
