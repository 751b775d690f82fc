"""Finds the root filesystem on a disk."""

from __future__ import annotations

import os
from typing import BinaryIO

from arcboxd.errors import ArcboxError, InvalidArgumentError
from arcboxd.images.ext4_read import Ext4, is_ext4
from arcboxd.images.formats import refuse_by_magic
from arcboxd.images.partitions import Partition, partitions
from arcboxd.images.rootfs import find
from arcboxd.images.streams import Slice

_HEAD_BYTES = 68 << 10
_SIGNS = ("etc/os-release", "usr/lib/os-release", "sbin/init", "bin/sh")
_LABELS = {"root", "rootfs", "cloudimg-rootfs", "/"}


def root_filesystem(disk: BinaryIO, arch: str) -> tuple[Ext4, int]:
    """Give the root filesystem, and where on the disk it begins.

    That is the disk itself, or of its partitions the one that its type or label says is the root,
    or the largest that looks like a Linux root.

    Raises:
        CorruptError: The partition table or the filesystem is damaged.
        InvalidArgumentError: There is no root filesystem.
        UnsupportedError: It is of a kind that is not known.
    """
    total = os.fstat(disk.fileno()).st_size
    head = os.pread(disk.fileno(), _HEAD_BYTES, 0)
    if is_ext4(head):
        return Ext4(disk, 0, total), 0
    if (found := partitions(disk)) is None:
        raise InvalidArgumentError(
            "the image is of no kind that is known",
            hint="known: tar archives, squashfs, OCI and docker archives, and raw or qcow2 disks"
            " with an ext4 filesystem",
        )
    refused: ArcboxError | None = None
    for part in sorted(found, key=lambda p: _rank(disk, p, arch)):
        head = os.pread(disk.fileno(), min(_HEAD_BYTES, part.size), part.begin)
        try:
            if is_ext4(head):
                filesystem = Ext4(disk, part.begin, part.size)
                if any(find(filesystem, path) for path in _SIGNS):
                    return filesystem, part.begin
            elif head.strip(b"\0"):
                refuse_by_magic(head, Slice(disk, part.begin, part.size))
        except ArcboxError as error:
            refused = refused or error
    if refused is not None:
        raise refused
    raise InvalidArgumentError(
        f"none of the {len(found)} partitions in the image is the ext4 root of a Linux system"
    )


def _rank(disk: BinaryIO, part: Partition, arch: str) -> tuple[bool, bool, int]:
    head = os.pread(disk.fileno(), 2048, part.begin)
    label = head[1144:1160].split(b"\0")[0].decode(errors="replace") if is_ext4(head) else ""
    named = bool({part.label.lower(), label.lower()} & _LABELS)
    return part.root_of != arch, not named, -part.size
