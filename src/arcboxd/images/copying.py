"""Copies a part of a file, with its holes and without its zeros."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from arcboxd.errors import CorruptError
from arcboxd.images.limits import Limits

_CHUNK_BYTES = 1 << 20
_BLOCK_BYTES = 4096
_TELL_BYTES = 64 << 20


def copy_sparse(  # noqa: PLR0917
    source: BinaryIO,
    offset: int,
    size: int,
    target: Path,
    limits: Limits,
    step: Callable[[str, int, int], None],
) -> None:
    """Write a part of a file into a new one.

    Raises:
        CorruptError: The file ends before the part does.
        UnsafeImageError: It holds more than an image may.
    """
    fd = source.fileno()
    if os.fstat(fd).st_size < offset + size:
        raise CorruptError("the image ends before its filesystem does")
    written = told = 0
    with target.open("xb") as out:
        out.truncate(size)
        for begin, end in _filled(fd, offset, offset + size):
            for at in range(begin, end, _CHUNK_BYTES):
                data = os.pread(fd, min(_CHUNK_BYTES, end - at), at)
                for part in range(0, len(data), _BLOCK_BYTES):
                    block = data[part : part + _BLOCK_BYTES]
                    if block.strip(b"\0"):
                        written += os.pwrite(out.fileno(), block, at - offset + part)
                limits.check_total(written)
                if at - told >= _TELL_BYTES:
                    step("copying the root filesystem", at - offset, size)
                    told = at


def _filled(fd: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Give the ranges that are no holes."""
    while begin < end:
        try:
            data = os.lseek(fd, begin, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        begin = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        if data < begin:
            # From a block of the target's own, which need not be one of the source's.
            yield data, begin
