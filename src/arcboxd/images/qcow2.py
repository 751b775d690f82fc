"""Checks a qcow2 file before any program opens it, and makes a raw disk of it.

What is refused is what makes QEMU open or write another file, and what a converter would need
unbounded memory, time or room for. Source: QEMU's docs/interop/qcow2.txt.
"""
# ruff: noqa: PLR2004 - sizes and offsets are the format's

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

from arcboxd.errors import CorruptError, UnsafeImageError, UnsupportedError
from arcboxd.images.limits import Limits
from arcboxd.images.streams import Slice
from arcboxd.process import CommandError, reading, tool

MAGIC = b"QFI\xfb"
_DIRTY, _CORRUPT, _EXTERNAL, _COMPRESSION = 1, 2, 4, 8
_KNOWN_EXTENSIONS = {0x6803F857, 0x23852875, 0x0537BE77, 0xE2792ACA}
"""Feature names, bitmaps, encryption (its own refusal), the backing file's format."""
_EXTERNAL_EXTENSION = 0x44415441
_OFFSET_MASK = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
_MAX_SNAPSHOTS = 1024
_MAX_TABLE_BYTES = 32 << 20


def check(source: Slice, limits: Limits) -> int:  # noqa: C901 - a list of refusals
    """Check a file's header and tables, and give its disk's size in bytes.

    Raises:
        CorruptError: It is damaged.
        UnsafeImageError: It names other files, or would need more than an image may.
        UnsupportedError: It is encrypted, or of a newer kind.
    """
    header = source.head(112)
    if len(header) < 72 or header[:4] != MAGIC:
        raise CorruptError("the image is no qcow2 file")
    version, backing_at, backing_bytes, bits, size, crypt = struct.unpack_from(">IQIIQI", header, 4)
    l1_count, l1_at, refcounts_at, refcount_clusters, snapshots = struct.unpack_from(
        ">IQQII", header, 36
    )
    if version not in {2, 3}:
        raise UnsupportedError(f"the image is qcow2 of version {version}, which is not known")
    if backing_at or backing_bytes:
        raise UnsafeImageError(
            "the image rests on another file (a backing file)",
            hint="make it one file: qemu-img convert -O qcow2 OLD NEW",
        )
    if crypt:
        raise UnsupportedError("the image is encrypted", hint="give it decrypted")
    if version == 3:
        _check_features(header)
    if not 9 <= bits <= 21:
        raise CorruptError("the image is damaged: its cluster size cannot be")
    if not 0 < size <= limits.disk_bytes:
        raise UnsafeImageError(f"the image is a disk of {size} bytes, which is too large")
    cluster = 1 << bits
    if refcount_clusters * cluster > _MAX_TABLE_BYTES or snapshots > _MAX_SNAPSHOTS:
        raise UnsafeImageError("the image's tables are larger than any disk needs")
    needed = -(-size // (cluster * (cluster // 8)))
    if l1_count < needed or l1_count * 8 > _MAX_TABLE_BYTES:
        raise CorruptError("the image is damaged: its table has no such size")
    for at in (l1_at, refcounts_at):
        if at % cluster or not cluster <= at < source.size:
            raise CorruptError("the image is damaged: a table is not in the file")
    used = _used_clusters(source, cluster, l1_at, needed)
    limits.check_total(used * cluster)
    limits.check_ratio(source.size, used * cluster)
    return int(size)


def _check_features(header: bytes) -> None:
    incompatible, _compatible, _autoclear, order, length = struct.unpack_from(">QQQII", header, 72)
    if incompatible & _EXTERNAL:
        raise UnsafeImageError("the image keeps its data in another file")
    if incompatible & _CORRUPT:
        raise CorruptError("the image is marked as damaged")
    if incompatible & ~(_DIRTY | _COMPRESSION):
        raise UnsupportedError(f"the image has unknown qcow2 features ({incompatible:#x})")
    if order > 6 or length < 104 or length % 8 or length > 4096:
        raise CorruptError("the image is damaged: its header cannot be")
    if incompatible & _COMPRESSION and (len(header) < 105 or header[104] > 1):
        raise UnsupportedError("the image is compressed in a way that is not known")


def check_extensions(source: Slice) -> None:
    """Refuse header extensions that name other files.

    Raises:
        CorruptError: They do not end.
        UnsafeImageError: One names a file.
    """
    version, bits = struct.unpack(">I", source.head(8)[4:])[0], source.head(24)[20:24]
    cluster = 1 << min(int.from_bytes(bits, "big"), 21)
    data = source.head(cluster)
    at = struct.unpack_from(">I", data, 100)[0] if version == 3 else 72
    while at + 8 <= len(data):
        kind, length = struct.unpack_from(">II", data, at)
        if kind == 0:
            return
        if kind == _EXTERNAL_EXTENSION:
            raise UnsafeImageError("the image keeps its data in another file")
        if kind not in _KNOWN_EXTENSIONS or length > cluster:
            raise UnsupportedError(f"the image has an unknown header extension ({kind:#x})")
        at += 8 + -(-length // 8) * 8
    raise CorruptError("the image is damaged: its header has no end")


def _used_clusters(source: Slice, cluster: int, l1_at: int, l1_count: int) -> int:
    """Count the clusters that have data, so that many names of one are counted as many."""
    fd, used = source.file.fileno(), 0
    table = os.pread(fd, l1_count * 8, source.begin + l1_at)
    if len(table) < l1_count * 8:
        raise CorruptError("the image is damaged: it ends in its table")
    counted: dict[int, int] = {}
    for (entry,) in struct.iter_unpack(">Q", table):
        at = entry & _OFFSET_MASK
        if not at:
            continue
        if at not in counted:
            data = os.pread(fd, cluster, source.begin + at)
            if at % cluster or len(data) < cluster:
                raise CorruptError("the image is damaged: a table is not in the file")
            counted[at] = _count(data, source.size, cluster)
        used += counted[at]
    return used


def _count(table: bytes, size: int, cluster: int) -> int:
    if not table.strip(b"\0"):
        return 0
    used = 0
    for (entry,) in struct.iter_unpack(">Q", table):
        if not entry:
            continue
        if entry & _COMPRESSED:
            # Its last sector may reach past the end of the file.
            width = 62 - (cluster.bit_length() - 1 - 8)
            at = entry & ((1 << width) - 1)
        else:
            at = entry & _OFFSET_MASK
            if at % cluster:
                raise CorruptError("the image is damaged: its data is not where it should be")
        if at >= size:
            raise CorruptError("the image is damaged: its data is not in the file")
        used += bool(at)
    return used


def to_raw(source: BinaryIO, target: Path) -> None:
    """Write a checked file's disk, sparse, into a new file.

    Raises:
        CorruptError: qemu-img finds it damaged.
        MissingToolError: The host has no qemu-img.
    """
    # The very file that was checked, by no name; and the formats are given, never guessed.
    argv = [tool("qemu-img", package="qemu-utils"), "convert", "-f", "qcow2", "-O", "raw"]
    argv += ["-S", "4096", "file:/dev/stdin", f"file:{target.absolute()}"]
    try:
        with reading(argv, source):
            pass
    except CommandError as error:
        raise CorruptError(f"the image cannot be read as qcow2: {error}") from error
