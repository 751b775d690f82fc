"""How busy the system is, by /proc: whether it has come to rest, and what keeps it from that."""

# pathlib is not imported: start-up takes long under emulation.
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import asyncio
import os

_BUSY_FIELDS = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq: neither idle, iowait nor steal
_BUSY_SHARE = 0.05  # of one processor
_MAX_NAMED = 3


async def wait_at_rest(window_s: float) -> None:
    """Return once less than a twentieth of one processor was used throughout a window of time."""
    before = _busy_ticks()
    limit = _BUSY_SHARE * window_s * os.sysconf("SC_CLK_TCK")
    while True:
        await asyncio.sleep(window_s)
        after = _busy_ticks()
        if after - before <= limit:
            return
        before = after


def _busy_ticks() -> int:
    with open("/proc/stat", encoding="ascii") as file:
        return parse_busy_ticks(file.readline())


def parse_busy_ticks(line: str) -> int:
    """Parse the first line of /proc/stat into the ticks that processors were busy. See proc(5)."""
    fields = line.split()[1:]
    return sum(int(fields[index]) for index in _BUSY_FIELDS)


async def name_busiest(window_s: float) -> list[str]:
    """Name the processes that use most time within a window, most first."""
    before = _ticks_by_process()
    await asyncio.sleep(window_s)
    return busiest(before, _ticks_by_process())


def busiest(before: dict[tuple[int, str], int], after: dict[tuple[int, str], int]) -> list[str]:
    """Name the processes that used most ticks between two moments, most first."""
    used = [(ticks - before.get(key, 0), key) for key, ticks in after.items()]
    most = sorted((each for each in used if each[0] > 0), reverse=True)[:_MAX_NAMED]
    return [f"{name} (process {pid})" for _, (pid, name) in most]


def _ticks_by_process() -> dict[tuple[int, str], int]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    command, ticks = parse_process(file.read())
            except (FileNotFoundError, ProcessLookupError):  # it has just ended
                continue
            found[int(name), command] = ticks
    return found


def parse_process(stat: str) -> tuple[str, int]:
    """Parse /proc/PID/stat into the command's name and the ticks it used."""
    end = stat.rindex(")")
    fields = stat[end + 2 :].split()
    return stat[stat.index("(") + 1 : end], int(fields[11]) + int(fields[12])
