"""Pages of a private mapping that one process wrote to: learnt, and copied for another."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcboxd.hypervisor.qemu import hot_pages

PAGE = mmap.PAGESIZE
PAGES = 1024
SIZE = PAGES * PAGE
MAPPER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
ram = mmap.mmap(fd, int(sys.argv[2]), mmap.MAP_PRIVATE)
pages = int(sys.argv[2]) // mmap.PAGESIZE
for line in sys.stdin:
    what, *numbers = line.split()
    for number in map(int, numbers):
        if what == "read":
            ram[number * mmap.PAGESIZE]
        elif what == "write":
            ram[number * mmap.PAGESIZE + 7] = 0xEE
    total = sum(ram[n * mmap.PAGESIZE + 7] for n in range(pages)) if what == "sum" else 0
    print(total, flush=True)
"""


class Mapper:
    """A process with a private mapping of a file."""

    def __init__(self, memory: Path, size: int = SIZE) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAPPER, str(memory), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        self.do("begin")

    def do(self, what: str, *numbers: int) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(what, *numbers, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    path = tmp_path / "ram"
    path.write_bytes(b"".join(bytes([n % 251]) * PAGE for n in range(PAGES)))
    return path


@pytest.fixture
def mappers(memory: Path) -> Iterator[tuple[Mapper, Mapper]]:
    both = Mapper(memory), Mapper(memory)
    yield both
    for each in both:
        each.process.communicate(timeout=10)


WRITTEN = (0, 3, 4, 5, 600, PAGES - 1)
RANGES = ((0, PAGE), (3 * PAGE, 3 * PAGE), (600 * PAGE, PAGE), ((PAGES - 1) * PAGE, PAGE))


def test_what_one_process_wrote_another_gets_copies_of(
    memory: Path, mappers: tuple[Mapper, Mapper]
) -> None:
    first, second = mappers
    before = memory.read_bytes()
    total = second.do("sum")
    first.do("read", *range(PAGES))
    assert hot_pages.learn(first.pid, memory, SIZE) == ()
    first.do("write", *WRITTEN)
    learnt = hot_pages.learn(first.pid, memory, SIZE)
    assert learnt == RANGES

    hot_pages.copy(second.pid, memory, SIZE, learnt)
    assert hot_pages.learn(second.pid, memory, SIZE) == RANGES
    assert second.do("sum") == total
    second.do("write", *WRITTEN)
    assert second.do("sum") != total
    assert memory.read_bytes() == before


def test_long_ranges_are_cut() -> None:
    offsets = iter(range(0, 3 << 20, PAGE))
    assert list(hot_pages._joined(offsets)) == [(n << 20, 1 << 20) for n in range(3)]


def test_another_file_or_size_is_not_taken_for_the_memory(
    memory: Path, tmp_path: Path, mappers: tuple[Mapper, Mapper]
) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(SIZE))
    with pytest.raises(LookupError):
        hot_pages.learn(mappers[0].pid, other, SIZE)
    with pytest.raises(LookupError):
        hot_pages.copy(mappers[0].pid, memory, SIZE // 2, RANGES)


def test_a_process_that_is_gone_is_an_error(memory: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises((OSError, LookupError)):
        hot_pages.copy(process.pid, memory, SIZE, RANGES)
    assert os.path.exists(memory)  # noqa: PTH110
