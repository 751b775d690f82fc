"""Trees of files as tar streams: written without a copy, read as what a hostile guest may send.

Not `tarfile.TarFile`: it takes headers of any size into memory, and its filters that keep a
member from leaving the target come with newer versions of Python than ours, and refuse links that
are fine to keep. Here no path is looked up by its name but one component at a time, and never
through a symbolic link.
"""

# What pathlib's way costs here is a Path a file, and it has no way by a directory's descriptor.
# ruff: noqa: PTH115, PTH116, PTH123, PTH208

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from arcboxd.errors import CorruptError, PreconditionError

BLOCK = tarfile.BLOCKSIZE
CHUNK_BYTES = 64 << 10
MAX_NAME_BYTES = 64 << 10
MAX_DEPTH = 400
_END = b"\0" * (2 * BLOCK)
_PERMISSIONS = 0o777
_LAST_UNIX_S = (1 << 32) - 1

Skipped = Callable[[str, str], None]
"""Told the name of what was left out, and why."""


def size_bytes(source: Path) -> int:
    """Add up the regular files of a tree."""
    return sum(status.st_size for _, _, status in _walk(source, "", _ignore) if _is_file(status))


def pack(source: Path, name: str, owner: tuple[int, int], skipped: Skipped) -> Iterator[bytes]:
    """Give a tree as a tar stream, piece by piece; what cannot be read is left out and told.

    Args:
        source: A file, directory or link; a directory's contents if ``name`` is empty.
        name: What it is to be called.
        owner: The uid and gid that all of it is to belong to.
        skipped: Told what is left out.
    """
    seen: dict[tuple[int, int], str] = {}
    for path, inner, status in _walk(source, name, skipped):
        if not inner:
            continue
        info = _info(path, inner, status, owner, seen)
        if info is None:
            skipped(str(path), "it is neither a file nor a directory nor a link")
        elif info.isreg():
            if (yield from _file(path, info, skipped)) and status.st_nlink > 1:
                seen[status.st_dev, status.st_ino] = inner
        else:
            yield _header(info)
    yield _END


def unpack(
    pieces: Iterator[bytes], target: Path, name: str, skipped: Skipped, *, tree: bool
) -> Iterator[int]:
    """Write a tar stream into a directory; gives the bytes of each piece of a file.

    Modes and times are kept, but not owners and not set-user-ids.

    Args:
        pieces: The stream.
        target: The directory.
        name: What the tree or the file is to be called in it; a tree may have no name, then all
            that is in it goes into the directory itself.
        skipped: Told what is left out.
        tree: The stream's names begin with those of what is in the tree; else it is of one file.

    Raises:
        CorruptError: It is no tar stream, or one that would reach out of the directory.
        PreconditionError: Something of another kind is in its way.
        OSError: Something cannot be written.
    """
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    writer = _Tree(root, name, tree=tree)
    try:
        yield from _unpack(_Reader(pieces), writer, skipped)
        writer.leave(0)
    finally:
        writer.close()
        os.close(root)


def _ignore(_name: str, _why: str) -> None:
    return


def _is_file(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode)


def _walk(source: Path, name: str, skipped: Skipped) -> Iterator[tuple[str, str, os.stat_result]]:
    """Give each path with the name that it gets, a directory before what is in it."""
    todo = [(os.fspath(source), name)]
    while todo:
        path, inner = todo.pop()
        try:
            # The contents of a directory are meant though it be named by a link.
            status = os.stat(path, follow_symlinks=not inner)
            names = sorted(os.listdir(path), reverse=True) if stat.S_ISDIR(status.st_mode) else []
        except OSError as error:
            skipped(path, error.strerror or str(error))
            continue
        yield path, inner, status
        todo += [(f"{path}/{each}", f"{inner}/{each}" if inner else each) for each in names]


def _info(
    path: str,
    name: str,
    status: os.stat_result,
    owner: tuple[int, int],
    seen: dict[tuple[int, int], str],
) -> tarfile.TarInfo | None:
    """Describe a file; None for kinds that are not copied."""
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
    info.uid, info.gid = owner
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
    elif not stat.S_ISREG(status.st_mode):
        return None
    elif first := seen.get((status.st_dev, status.st_ino)):
        info.type, info.linkname = tarfile.LNKTYPE, first
    return info


def _file(path: str, info: tarfile.TarInfo, skipped: Skipped) -> Generator[bytes, None, bool]:
    """Give a file's header and contents; tell whether it could be opened."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        skipped(path, error.strerror or str(error))
        return False
    with open(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            skipped(path, "it was replaced meanwhile")
            return False
        info.size = left = status.st_size
        yield _header(info)
        while left:
            try:
                data = file.read(min(left, CHUNK_BYTES))
            except OSError as error:
                skipped(path, error.strerror or str(error))
                break
            if not data:
                skipped(path, "it became shorter while it was read")
                break
            yield data
            left -= len(data)
        yield from _zeroes(left)
    yield bytes(-info.size % BLOCK)
    return True


def _zeroes(count: int) -> Iterator[bytes]:
    while count:
        piece = min(count, CHUNK_BYTES)
        yield bytes(piece)
        count -= piece


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


class _Reader:
    """A stream of pieces, read by counts of bytes."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = b""

    def some(self, most: int) -> bytes:
        """Give at least one byte.

        Raises:
            CorruptError: The stream has ended.
        """
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                raise CorruptError("the files' stream from the machine ended in the middle")
            self._left = piece
        data, self._left = self._left[:most], self._left[most:]
        return data

    def exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            data += self.some(count - len(data))
        return bytes(data)

    def contents(self, size: int) -> Iterator[bytes]:
        """Give a member's contents, and pass over what fills its last block."""
        left = size
        while left:
            data = self.some(min(left, CHUNK_BYTES))
            left -= len(data)
            yield data
        self.exactly(-size % BLOCK)

    def text(self, size: int) -> str:
        if size > MAX_NAME_BYTES:
            raise CorruptError("the machine sends a file's name of more than 64 KiB")
        return b"".join(self.contents(size)).rstrip(b"\0").decode("utf-8", "surrogateescape")


def _parse(block: bytes) -> tarfile.TarInfo | None:
    """Read a header; None for the end."""
    if not any(block):
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise CorruptError(f"the machine sends no archive of files: {error}") from error
    if info.size < 0:
        raise CorruptError("the machine sends a file of a negative size")
    info.mtime = min(max(info.mtime, 0), _LAST_UNIX_S)
    return info


def _unpack(reader: _Reader, tree: _Tree, skipped: Skipped) -> Iterator[int]:
    longer = {tarfile.GNUTYPE_LONGNAME: "", tarfile.GNUTYPE_LONGLINK: ""}
    while True:
        info = _parse(reader.exactly(BLOCK))
        if info is None:
            return
        if info.type in longer:
            longer[info.type] = reader.text(info.size)
            continue
        name = longer[tarfile.GNUTYPE_LONGNAME] or info.name
        link = longer[tarfile.GNUTYPE_LONGLINK] or info.linkname
        longer = dict.fromkeys(longer, "")
        if info.isreg():
            yield from tree.file(name, info, reader.contents(info.size))
            continue
        for _ in reader.contents(info.size):
            pass
        if info.isdir():
            tree.folder(name, info)
        elif info.issym():
            tree.symlink(name, link, info)
        elif info.islnk():
            tree.hard_link(name, link)
        else:
            skipped(name, "it is neither a file nor a directory nor a link")


class _Tree:
    """Writes below a directory. Holds those that lead to the last member open, and no others."""

    def __init__(self, root: int, name: str, *, tree: bool) -> None:
        self._root = root
        self._name = [name] if name else []
        self._is_tree = tree
        self._open: list[tuple[str, int, tarfile.TarInfo | None]] = []

    def folder(self, name: str, info: tarfile.TarInfo) -> None:
        parts = self._parts(name)
        if not parts:
            return  # the target itself, which stays as it is
        self._enter(parts)
        last, fd, _ = self._open[-1]
        self._open[-1] = last, fd, info

    def file(self, name: str, info: tarfile.TarInfo, contents: Iterator[bytes]) -> Iterator[int]:
        parent, last = self._place(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(last, flags, 0o600, dir_fd=parent)
        with open(fd, "wb", buffering=0) as file:
            for data in contents:
                file.write(data)
                yield len(data)
            os.fchmod(fd, info.mode & _PERMISSIONS)
            os.utime(fd, (info.mtime, info.mtime))

    def symlink(self, name: str, link: str, info: tarfile.TarInfo) -> None:
        if "\0" in link:
            raise CorruptError(f"the machine sends a link to {link[:200]!r}")
        parent, last = self._place(name)
        os.symlink(link, last, dir_fd=parent)
        os.utime(last, (info.mtime, info.mtime), dir_fd=parent, follow_symlinks=False)

    def hard_link(self, name: str, link: str) -> None:
        parts = self._parts(link)
        if not parts:
            raise CorruptError(f"the machine sends a link to {link[:200]!r}")
        parent, last = self._place(name)
        source = os.dup(self._root)
        try:
            for part in parts[:-1]:
                inner = _open_folder(part, source)
                os.close(source)
                source = inner
            os.link(parts[-1], last, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def leave(self, depth: int) -> None:
        """Let go of the directories below a depth, which are now as they are to stay."""
        while len(self._open) > depth:
            _, fd, info = self._open.pop()
            try:
                if info is not None:
                    os.fchmod(fd, info.mode & _PERMISSIONS)
                    os.utime(fd, (info.mtime, info.mtime))
            finally:
                os.close(fd)

    def close(self) -> None:
        for _, fd, _ in self._open:
            os.close(fd)
        self._open.clear()

    def _parts(self, name: str) -> list[str]:
        parts = [part for part in name.split("/") if part not in {"", "."}]
        if name.startswith("/") or ".." in parts or "\0" in name:
            raise CorruptError(f"the machine sends a file that would be outside: {name[:200]!r}")
        if len(parts) > MAX_DEPTH:
            raise CorruptError(f"the machine sends directories more than {MAX_DEPTH} deep")
        return [*self._name, *parts] if self._is_tree else self._name

    def _place(self, name: str) -> tuple[int, str]:
        """Give the directory that is to have a member, and its name there, which is free now."""
        parts = self._parts(name)
        if not parts:
            raise CorruptError(f"the machine sends a file without a name: {name[:200]!r}")
        self._enter(parts[:-1])
        parent = self._open[-1][1] if self._open else self._root
        try:
            os.unlink(parts[-1], dir_fd=parent)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            path = "/".join(parts)
            raise PreconditionError(f"{path} is a directory here, but not in the machine") from None
        return parent, parts[-1]

    def _enter(self, parts: list[str]) -> None:
        same = 0
        for (known, _, _), part in zip(self._open, parts, strict=False):
            if known != part:
                break
            same += 1
        self.leave(same)
        for part in parts[same:]:
            parent = self._open[-1][1] if self._open else self._root
            self._open.append((part, _make_folder(part, parent), None))


def _make_folder(name: str, parent: int) -> int:
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        return _open_folder(name, parent)
    fd = _open_folder(name, parent)
    os.fchmod(fd, 0o755)  # until its own mode is known, and if that never comes
    return fd


def _open_folder(name: str, parent: int) -> int:
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=parent)
    except (NotADirectoryError, FileNotFoundError) as error:
        raise PreconditionError(
            f"{name!r} is no directory here, but something of the machine belongs into it"
        ) from error
