"""Whose daemon is it: the lock file, read without disturbing anyone who wants the lock."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_LOCKS = Path("/proc/locks")


def owner_pid(lock: Path, *, locks: Path = _LOCKS) -> int | None:
    """Tell the pid of the daemon that holds the lock; None when nobody does.

    The file alone proves nothing, since a daemon that died leaves its pid in it: the kernel must
    say that this very file is locked.

    Source: proc(5), /proc/locks; flock(2).
    """
    try:
        with lock.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            text = file.read(32)
            if not _locked(file.fileno(), inode, locks):
                return None
    except OSError:
        return None
    pid = text.split()[0] if text.split() else b""
    # Locked and still empty: a daemon in its first instant, known to be there and not yet by pid.
    return int(pid) if pid.isdigit() else 0


def _locked(fd: int, inode: int, locks: Path) -> bool:
    try:
        # 1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF
        fields = [line.split() for line in locks.read_text().splitlines()]
    except OSError:
        # A shared lock, so that those who only look never hinder each other; a daemon that starts
        # in that instant would be turned away, hence only where /proc/locks is hidden.
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(fd, fcntl.LOCK_UN)
        return False
    # Without the device: overlayfs and btrfs show another there than stat does. A waiter has `->`.
    held = [f[5] for f in fields if f[1:2] == ["FLOCK"] and f[3:4] == ["WRITE"]]
    return any(place.rpartition(":")[2] == str(inode) for place in held)
