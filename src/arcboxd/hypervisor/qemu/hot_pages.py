"""The pages of a template's RAM that its clones write to, copied for a clone before it runs.

A clone maps the template's RAM privately. To write to a page that it has read before, or that lies
beside one, is a fault that copies the page and interrupts every processor that runs the clone,
since each may know the old one. What clones write to until they answer is much the same each time:
learnt from one, and copied at once for the next ones, it costs a fraction.

Source: proc(5), ``maps``, ``pagemap`` and ``mem``; Documentation/admin-guide/mm/pagemap.rst.
"""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

from arcboxd.hypervisor.base import PageRanges

_ENTRY_BYTES = 8
_CHUNK_ENTRIES = 8192
_FLAGS_SHIFT = 61
_FLAGS, _OWN = 0b101, 0b100
"""Present, and of a file: an own page is the one and not the other."""
_WRITE_BYTES = 1 << 20


def learn(pid: int, memory: Path, size_bytes: int) -> PageRanges:
    """Tell which pages of its RAM a process has copies of.

    Args:
        pid: The process, of the same user.
        memory: The file that its RAM is a private mapping of.
        size_bytes: The RAM's size.

    Raises:
        OSError: The kernel does not say.
        LookupError: The process has not mapped that file.
    """
    address = _address(pid, memory, size_bytes)
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        return tuple(_joined(_own_pages(pagemap.fileno(), address, size_bytes)))


def copy(pid: int, memory: Path, size_bytes: int, ranges: PageRanges) -> None:
    """Give a process that does not run yet copies of these pages of its RAM.

    Raises:
        OSError: The kernel refused; some may be copied.
        LookupError: The process has not mapped that file.
    """
    address = _address(pid, memory, size_bytes)
    with (
        memory.open("rb", buffering=0) as source,
        Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as target,
    ):
        for offset, length in ranges:
            data = os.pread(source.fileno(), length, offset)
            os.pwrite(target.fileno(), data, address + offset)


def _address(pid: int, memory: Path, size_bytes: int) -> int:
    wanted = memory.stat().st_ino
    with Path(f"/proc/{pid}/maps").open("rb") as maps:
        for line in maps:
            span, _, _, _, inode, *_ = line.split(maxsplit=5)
            if int(inode) == wanted:
                begin, _, end = span.partition(b"-")
                if int(end, 16) - int(begin, 16) == size_bytes:
                    return int(begin, 16)
    raise LookupError(f"process {pid} has not mapped {memory}")


def _own_pages(pagemap: int, address: int, size_bytes: int) -> Iterator[int]:
    """Give the offsets of the pages that are the process's own."""
    page = mmap.PAGESIZE
    first, count = address // page, size_bytes // page
    for begin in range(0, count, _CHUNK_ENTRIES):
        wanted = min(_CHUNK_ENTRIES, count - begin) * _ENTRY_BYTES
        data = os.pread(pagemap, wanted, (first + begin) * _ENTRY_BYTES)
        if data.strip(b"\0"):
            for index, entry in enumerate(array("Q", data), start=begin):
                if entry >> _FLAGS_SHIFT & _FLAGS == _OWN:
                    yield index * page


def _joined(offsets: Iterator[int]) -> Iterator[tuple[int, int]]:
    """Join neighbours."""
    page = mmap.PAGESIZE
    begin = end = -1
    for offset in offsets:
        if offset != end or end - begin >= _WRITE_BYTES:
            if end > begin:
                yield begin, end - begin
            begin = offset
        end = offset + page
    if end > begin:
        yield begin, end - begin
