"""Writes files as root: whole or not at all, and never through a link that a user has laid."""

# pathlib is not imported: start-up takes long under emulation.
# ruff: noqa: PTH101, PTH102, PTH115, PTH123, PTH211

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_OWN_SUFFIX = ".arcbox-new"
_CHUNK_BYTES = 64 * 1024
_MAX_READ_BYTES = 1024 * 1024


def read(path: str) -> str:
    """Read a file; a missing one is empty.

    Raises:
        OSError: It exists and cannot be read.
    """
    # Not by `open`: its three layers are much to translate for a clone that reads its first file.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        parts = []
        while part := os.read(fd, _CHUNK_BYTES):
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts).decode("utf-8", "surrogateescape")


def write(path: str, text: str, *, mode: int | None = None) -> bool:
    """Replace a file of the system's in one step, unless it is so already; say if it changed.

    A link at that place is replaced, not followed. Mode and owner of an existing file are kept,
    where no mode is given.

    Raises:
        OSError: It cannot be written.
    """
    try:
        old = os.lstat(path)
    except FileNotFoundError:
        old = None
    is_file = old is not None and stat.S_ISREG(old.st_mode)
    if is_file and read(path) == text:
        if mode is not None and old is not None and stat.S_IMODE(old.st_mode) != mode:
            os.chmod(path, mode)
        return False
    if mode is None:
        mode = stat.S_IMODE(old.st_mode) if is_file and old is not None else 0o644
    owner = (old.st_uid, old.st_gid) if is_file and old is not None else (0, 0)
    _replace(path, text, mode, owner, None)
    return True


def overwrite(path: str, text: str, *, mode: int | None = None) -> bool:
    """Do what `write` does, but within the same inode, where that is a plain file.

    Not in one step, but it costs a clone much less than a new file, which is flushed to the disk
    when it takes the old one's name. For what nobody reads yet, and the next session makes whole.

    Raises:
        OSError: It cannot be written.
    """
    changed = _overwrite(path, text, mode, None)
    return write(path, text, mode=mode) if changed is None else changed


class UserFolder:
    """A user's folder, held open: names are looked up within, links are refused."""

    def __init__(self, path: str, uid: int, gid: int, *, parent: int | None = None) -> None:
        """Open the folder.

        Raises:
            OSError: It is missing, a link, or no folder.
            PermissionError: It belongs to another user.
        """
        self._owner = (uid, gid)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self.fd = os.open(path, flags, dir_fd=parent)
        if os.fstat(self.fd).st_uid not in (uid, 0):
            self.close()
            raise PermissionError(f"{path} belongs to another user")

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)

    def folder(self, name: str, mode: int) -> UserFolder:
        """Open a folder within, made if it is missing, with this mode and the user as its owner.

        Raises:
            OSError: It is a link, no folder, or another user's.
        """
        try:
            os.mkdir(name, mode, dir_fd=self.fd)
        except FileExistsError:
            made = False
        else:
            made = True
        inner = UserFolder(name, *self._owner, parent=self.fd)
        if made:
            os.fchown(inner.fd, *self._owner)
        os.fchmod(inner.fd, mode)
        return inner

    def read(self, name: str) -> str:
        """Read a file of the user's; a missing one is empty.

        Raises:
            OSError: It is a link.
            PermissionError: It is not a plain file of the user's own, or too large.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=self.fd)
        except FileNotFoundError:
            return ""
        try:
            found = os.fstat(fd)
            # A second name of the file may be one that the user could not read.
            plain = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
            if not plain or found.st_uid not in (self._owner[0], 0):
                raise PermissionError(f"{name} is not a plain file of the user's own")
            if found.st_size > _MAX_READ_BYTES:
                raise PermissionError(f"{name} is larger than {_MAX_READ_BYTES} bytes")
            return os.read(fd, found.st_size).decode("utf-8", "surrogateescape")
        finally:
            os.close(fd)

    def write(self, name: str, text: str, mode: int, *, in_place: bool = False) -> None:
        """Replace a file of the user's in one step, or overwrite it as `overwrite` does.

        Raises:
            OSError: It cannot be written.
        """
        if not in_place or _overwrite(name, text, mode, self.fd) is None:
            _replace(name, text, mode, self._owner, self.fd)


def _replace(path: str, text: str, mode: int, owner: tuple[int, int], folder: int | None) -> None:
    new = path + _OWN_SUFFIX
    _unlink(new, folder)  # of an agent that was killed in here
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(new, flags, 0o600, dir_fd=folder)
    try:
        with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fchown(fd, *owner)
            os.fchmod(fd, mode)
        os.rename(new, path, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        _unlink(new, folder)
        raise


def _overwrite(path: str, text: str, mode: int | None, folder: int | None) -> bool | None:
    """Overwrite a plain file with one name and say if that changed it; None for anything else."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, dir_fd=folder)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            return None
        if mode is not None and stat.S_IMODE(found.st_mode) != mode:
            os.fchmod(fd, mode)
        new = text.encode("utf-8", "surrogateescape")
        if found.st_size == len(new) and os.pread(fd, len(new), 0) == new:
            return False
        os.pwrite(fd, new, 0)
        if found.st_size > len(new):
            os.ftruncate(fd, len(new))
        return True
    finally:
        os.close(fd)


def _unlink(path: str, folder: int | None) -> None:
    try:
        os.unlink(path, dir_fd=folder)
    except FileNotFoundError:
        return


def copy_tree(source: str, target: str, uid: int, gid: int) -> None:
    """Copy a small tree of plain files, folders and links into a new folder, owned by the user.

    Nobody but root may be able to write to `target` before this ends, so that no link can be laid.

    Raises:
        OSError: Something cannot be copied.
    """
    for entry in _entries(source):
        place = f"{target}/{entry.name}"
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), place)
        elif entry.is_dir(follow_symlinks=False):
            os.mkdir(place, 0o755)
            copy_tree(entry.path, place, uid, gid)
        elif entry.is_file(follow_symlinks=False):
            _copy_file(entry.path, place)
        else:
            continue
        os.chown(place, uid, gid, follow_symlinks=False)


def _entries(path: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            yield from list(entries)
    except FileNotFoundError:
        return


def _copy_file(source: str, place: str) -> None:
    with open(source, "rb") as reader, open(place, "xb") as writer:
        mode = stat.S_IMODE(os.fstat(reader.fileno()).st_mode)
        os.fchmod(writer.fileno(), mode)
        while chunk := reader.read(65536):
            writer.write(chunk)
