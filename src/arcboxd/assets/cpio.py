"""Writes cpio archives in the "newc" format, as the kernel reads them for an initramfs.

The same input gives the same bytes: times are 0, owners root, entries sorted.

Source: Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass

_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Node:
    """A file, directory, link or device of an archive."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(mode: int = 0o755) -> Node:
    """Make a directory."""
    return Node(stat.S_IFDIR | mode)


def file(data: bytes, mode: int = 0o644) -> Node:
    """Make a regular file."""
    return Node(stat.S_IFREG | mode, data)


def symlink(target: str) -> Node:
    """Make a symbolic link."""
    return Node(stat.S_IFLNK | 0o777, target.encode())


def character_device(major: int, minor: int, mode: int = 0o600) -> Node:
    """Make a character device's node; needs no privilege, since it is only written down."""
    return Node(stat.S_IFCHR | mode, device=(major, minor))


def write_cpio(nodes: Mapping[str, Node]) -> bytes:
    """Write an archive of nodes by path, without a leading slash.

    Directories above a path are added when they are not given. Regular files with the same content
    are not shared.
    """
    full = dict(nodes)
    for path in nodes:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            full.setdefault("/".join(parts[:depth]), directory())
    out = bytearray()
    for number, path in enumerate(sorted(full), start=1):
        _append(out, number, path, full[path])
    _append(out, 0, _TRAILER, Node(0))
    out += bytes(-len(out) % 512)
    return bytes(out)


def _append(out: bytearray, inode: int, path: str, node: Node) -> None:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(node.mode) else 1
    fields = [inode, node.mode, 0, 0, links, 0, len(node.data), 0, 0, *node.device, len(name), 0]
    out += b"070701" + b"".join(b"%08X" % value for value in fields) + name
    out += bytes(-len(out) % 4)
    out += node.data
    out += bytes(-len(out) % 4)
