"""Files and names that survive a power cut, and errors of the filesystem as ours."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arcboxd.errors import NoRoomError, StoreError


@contextmanager
def storing(what: str) -> Iterator[None]:
    """Translate the errors of a block that cannot ``what``.

    Raises:
        NoRoomError: The disk is full.
        StoreError: Anything else went wrong.
    """
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoRoomError(
                f"cannot {what}: {error}", hint="make room on that filesystem, and try again"
            ) from error
        raise StoreError(f"cannot {what}: {error}") from error


def write(path: Path, content: bytes) -> None:
    """Write a file with mode 0600, in place of the one that is there, at one stroke and durably.

    Raises:
        OSError: The file is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    temporary.rename(path)
    sync(path.parent)


def rename(path: Path, target: Path) -> None:
    """Give a file or directory another name below the same directory, durably.

    Raises:
        OSError: It may have either name.
    """
    path.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Make a file's content, or the names in a directory, durable.

    Raises:
        OSError: They may be lost by a power cut.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
