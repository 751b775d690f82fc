"""The file that a download grows in, hashed as it is written; blocking, for use in a thread."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path

from arcboxd import durable
from arcboxd.errors import PreconditionError

_READ_BYTES = 1 << 20


class PartFile:
    """``NAME.part``: what came so far, and its digest; held by one download at a time."""

    def __init__(self, target: Path) -> None:
        """Name the file beside ``target``; nothing is opened yet."""
        self.path = target.with_name(f"{target.name}.part")
        self.size, self._digest = 0, hashlib.sha256()
        self._target = target
        self._fd = -1

    def open(self) -> None:
        """Open or make the file, and hash what is in it.

        Raises:
            NoRoomError: The disk is full.
            PreconditionError: Another download holds it.
            StoreError: It cannot be opened or read.
        """
        with durable.storing(f"open {self.path}"):
            self._fd = _locked(self.path)
        with durable.storing(f"read {self.path}"):
            self.size, self._digest = _hashed(self._fd)

    @property
    def sha256(self) -> str:
        """Tell the digest of all that is in the file."""
        return self._digest.hexdigest()

    def write(self, data: bytes | bytearray) -> None:
        """Append.

        Raises:
            NoRoomError: The disk is full.
            StoreError: It cannot be written.
        """
        with durable.storing(f"write {self.path}"):
            rest = memoryview(data)
            while rest:
                written = os.pwrite(self._fd, rest, self.size)
                self._digest.update(rest[:written])
                self.size += written
                rest = rest[written:]

    def empty(self) -> None:
        """Forget all that came so far.

        Raises:
            StoreError: It cannot be written.
        """
        with durable.storing(f"empty {self.path}"):
            os.ftruncate(self._fd, 0)
        self.size, self._digest = 0, hashlib.sha256()

    def publish(self) -> None:
        """Give the file its name, durably, in place of one that has it.

        Raises:
            NoRoomError: The disk is full.
            StoreError: It may have either name.
        """
        with durable.storing(f"finish {self._target}"):
            os.fsync(self._fd)
            durable.rename(self.path, self._target)

    def delete(self) -> None:
        """Remove the file. Idempotent."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others have it; what came so far stays. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def matches(path: Path, sha256: str) -> bool:
    """Tell whether there is a file of that digest."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return _hashed(fd)[1].hexdigest() == sha256
    except OSError:
        return False
    finally:
        os.close(fd)


def _locked(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise PreconditionError(
                f"another download writes to {path}", hint="wait for it, or end it"
            ) from error
        # Who held it before may have renamed or removed it while we opened it.
        if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
            return fd
        os.close(fd)


def _hashed(fd: int) -> tuple[int, hashlib._Hash]:
    digest, size = hashlib.sha256(), 0
    while data := os.pread(fd, _READ_BYTES, size):
        digest.update(data)
        size += len(data)
    return size, digest
