"""Reads which shared libraries an ELF file needs.

Source: elf(5).
"""

from __future__ import annotations

import struct
from pathlib import Path

from arcboxd.errors import CorruptError

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5


def needed(path: Path) -> list[str]:
    """Name the libraries that a 64-bit little-endian ELF file asks for, in its own order.

    Raises:
        CorruptError: It is no such file.
    """
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise CorruptError(f"{path.name} is not a 64-bit ELF file")
    try:
        return _needed(data)
    except (struct.error, ValueError) as error:
        raise CorruptError(f"{path.name} is a damaged ELF file: {error}") from error


def _needed(data: bytes) -> list[str]:
    (start,) = struct.unpack_from("<Q", data, 0x20)
    size, count = struct.unpack_from("<HH", data, 0x36)
    headers = [struct.unpack_from("<IIQQQQQQ", data, start + i * size) for i in range(count)]
    loads = [(va, off, filled) for kind, _, off, va, _, filled, *_ in headers if kind == _PT_LOAD]
    names: list[int] = []
    strings = 0
    for kind, _, offset, _, _, filled, *_ in headers:
        if kind != _PT_DYNAMIC:
            continue
        for tag, value in struct.iter_unpack("<QQ", data[offset : offset + filled]):
            if tag == _DT_NULL:
                break
            if tag == _DT_NEEDED:
                names.append(value)
            elif tag == _DT_STRTAB:
                strings = value
    base = next((off + strings - va for va, off, n in loads if va <= strings < va + n), 0)
    return [data[base + at : data.index(b"\0", base + at)].decode() for at in names]
