"""Where the partitions of a disk are: MBR and GPT, read with bounds.

Source: UEFI specification 2.10, chapter 5; the discoverable partitions specification for types.
"""
# ruff: noqa: PLR2004 - sizes and offsets are the format's

from __future__ import annotations

import os
import struct
import uuid
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from arcboxd.errors import CorruptError

_SECTOR = 512
_MAX_ENTRIES = 1024
_MAX_LOGICAL = 128
_EXTENDED = {0x05, 0x0F, 0x85}
_GPT_PROTECTIVE = 0xEE
_ROOTS = {
    uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"): "x86_64",
    uuid.UUID("b921b045-1df0-41c3-af44-4c6f280d3fae"): "aarch64",
}


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition, all of which is on the disk."""

    begin: int
    size: int
    """Both in bytes."""
    label: str
    root_of: str
    """The architecture whose root its type says it is; empty: it does not say."""


def partitions(disk: BinaryIO, offset: int = 0) -> list[Partition] | None:
    """List a disk's partitions; None if there is no partition table.

    Raises:
        CorruptError: The table is damaged, or a partition is not on the disk.
    """
    fd, total = disk.fileno(), os.fstat(disk.fileno()).st_size - offset
    sector = os.pread(fd, _SECTOR, offset)
    if len(sector) < _SECTOR or sector[510:] != b"\x55\xaa":
        return None
    rows = [_row(sector, n) for n in range(4)]
    # A filesystem's boot sector ends alike: a table has only known flags and somewhere to begin.
    if any(sector[446 + 16 * n] & 0x7F for n in range(4)) or not any(kind for kind, _, _ in rows):
        return None
    if any(kind == _GPT_PROTECTIVE for kind, _, _ in rows):
        found = _gpt(fd, offset)
    else:
        found = _mbr(fd, offset, rows)
    for n, part in enumerate(found, start=1):
        if part.begin < _SECTOR or part.size <= 0 or part.begin + part.size > total:
            raise CorruptError(f"the image's partition table is damaged: {n} is not on the disk")
    return found


def _row(sector: bytes, n: int) -> tuple[int, int, int]:
    kind = sector[446 + 16 * n + 4]
    begin, count = struct.unpack_from("<II", sector, 446 + 16 * n + 8)
    return kind, begin, count


def _mbr(fd: int, offset: int, rows: list[tuple[int, int, int]]) -> list[Partition]:
    found = []
    for kind, begin, count in rows:
        if kind in _EXTENDED:
            found += _logical(fd, offset, begin)
        elif kind and count:
            found.append(Partition(begin * _SECTOR, count * _SECTOR, "", ""))
    return found


def _logical(fd: int, offset: int, base: int) -> list[Partition]:
    found: list[Partition] = []
    at = base
    for _ in range(_MAX_LOGICAL):
        sector = os.pread(fd, _SECTOR, offset + at * _SECTOR)
        if len(sector) < _SECTOR or sector[510:] != b"\x55\xaa":
            raise CorruptError("the image's partition table is damaged: its chain breaks")
        (kind, begin, count), (more, following, _) = _row(sector, 0), _row(sector, 1)
        if kind and count:
            found.append(Partition((at + begin) * _SECTOR, count * _SECTOR, "", ""))
        if more not in _EXTENDED or not following:
            return found
        at = base + following
    raise CorruptError("the image's partition table is damaged: its chain has no end")


def _gpt(fd: int, offset: int) -> list[Partition]:
    header = os.pread(fd, _SECTOR, offset + _SECTOR)
    if len(header) < _SECTOR or header[:8] != b"EFI PART":
        raise CorruptError("the image's partition table is damaged: it has no GPT header")
    size, checksum = struct.unpack_from("<II", header, 12)
    if not 92 <= size <= _SECTOR or checksum != zlib.crc32(
        header[:16] + bytes(4) + header[20:size]
    ):
        raise CorruptError("the image's partition table is damaged: its checksum is wrong")
    (table,) = struct.unpack_from("<Q", header, 72)
    count, entry_bytes, entries_checksum = struct.unpack_from("<III", header, 80)
    if not 0 < count <= _MAX_ENTRIES or entry_bytes not in {128, 256, 512}:
        raise CorruptError("the image's partition table is damaged: it is of no such size")
    if not 2 <= table < 1 << 48:
        raise CorruptError("the image's partition table is damaged: its entries are nowhere")
    entries = os.pread(fd, count * entry_bytes, offset + table * _SECTOR)
    if len(entries) < count * entry_bytes or entries_checksum != zlib.crc32(entries):
        raise CorruptError("the image's partition table is damaged: its checksum is wrong")
    found = []
    for at in range(0, len(entries), entry_bytes):
        entry = entries[at : at + 128]
        kind = uuid.UUID(bytes_le=entry[:16])
        first, last = struct.unpack_from("<QQ", entry, 32)
        if kind.int:
            label = entry[56:128].decode("utf-16-le", errors="replace").split("\0")[0]
            length = (last - first + 1) * _SECTOR
            found.append(Partition(first * _SECTOR, length, label, _ROOTS.get(kind, "")))
    return found
