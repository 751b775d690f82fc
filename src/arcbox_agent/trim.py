"""DiskTrim: gives the blocks that no file uses back to the host."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING

from arcbox_agent.mounts import read_mounts
from arcbox_agent.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_agent.mounts import Mount

_FITRIM = 0xC0185879
_RANGE = struct.Struct("=3Q")
_WHOLE = (1 << 64) - 1
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL)


async def trim_all() -> str:
    """Trim every data filesystem, each device once; say how much, for people."""
    targets = choose(read_mounts())
    # The kernel is busy as long as the host's disk is.
    return await in_thread(lambda: report(targets, trim), name="trim")


def choose(mounts: list[Mount]) -> list[str]:
    """Choose the mount points to trim: one of each device, its whole tree if that is mounted."""
    chosen: dict[str, Mount] = {}
    for mount in mounts:
        if mount.is_writable_disk:
            known = chosen.get(mount.source)
            if known is None or (known.root != "/" and mount.root == "/"):
                chosen[mount.source] = mount
    return [mount.target for mount in chosen.values()]


def report(targets: list[str], trim_one: Callable[[str], int]) -> str:
    """Trim these mount points and put the results into one line."""
    if not targets:
        return "nothing to trim: no writable filesystem is on a disk"
    parts = []
    for target in targets:
        try:
            parts.append(f"{target}: {trim_one(target)} bytes trimmed")
        except OSError as error:
            why = "not supported" if error.errno in _UNSUPPORTED else error.strerror
            parts.append(f"{target}: {why}")
    return "; ".join(parts)


def trim(target: str) -> int:
    """Trim the filesystem mounted there; return the bytes it gave back.

    Raises:
        OSError: It cannot, or does not know how to.

    Source: include/uapi/linux/fs.h, FITRIM.
    """
    fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        answer = fcntl.ioctl(fd, _FITRIM, _RANGE.pack(0, _WHOLE, 0))
    finally:
        os.close(fd)
    return int(_RANGE.unpack(answer)[1])
