"""What machines use of the host's memory and processors, as the kernel counts it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arcboxd.domain.machine import Machine
from arcboxd.errors import ArcboxError
from arcboxd.machines.context import Context, Running
from arcboxd.settings import host_memory_bytes

_KIB = 1024
_GUEST_S = 2.0
"""How long a guest is waited for; one that does not answer has its say left out."""


@dataclass(frozen=True, slots=True)
class MachineUsage:
    """One machine's process. Sizes in bytes of the host's memory."""

    id: str
    name: str
    own_bytes: int
    """Given back when the machine ends."""
    shared_bytes: int
    """Mapped from files that others may map too, such as a template's RAM."""
    swapped_bytes: int
    memory_bytes: int
    guest_used_bytes: int
    """0 when the guest does not say."""
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Usage:
    """The machines that have a process, and the host's memory in bytes."""

    machines: tuple[MachineUsage, ...]
    host_memory_bytes: int
    host_available_bytes: int


async def usage(ctx: Context, refs: Sequence[str] = ()) -> Usage:
    """Measure the machines that are named, or all that have a process.

    Raises:
        MachineNotFoundError: There is no such machine.
        MachineStateError: One that is named has no process.
    """
    if refs:
        chosen = [await ctx.running_machine(ref, "measure") for ref in refs]
    else:
        held = [(m, ctx.running.get(m.id)) for m in ctx.registry.all()]
        chosen = [(machine, running) for machine, running in held if running is not None]
    measured = await asyncio.gather(*(_measure(ctx, m, running) for m, running in chosen))
    return Usage(
        tuple(each for each in measured if each is not None),
        host_memory_bytes(),
        available_bytes(),
    )


def available_bytes() -> int:
    """Tell how much memory the host could give to new programs. Source: proc(5), MemAvailable."""
    return _fields(Path("/proc/meminfo").read_text())["MemAvailable"]


async def _measure(ctx: Context, machine: Machine, running: Running) -> MachineUsage | None:
    process = Path("/proc") / str(running.vm.process.pid)
    try:
        sizes = _fields(await asyncio.to_thread((process / "smaps_rollup").read_text))
        ticks = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
    except (OSError, ValueError):
        return None  # it ended just now
    return MachineUsage(
        id=machine.id,
        name=machine.spec.name,
        own_bytes=sizes["Private_Clean"] + sizes["Private_Dirty"],
        shared_bytes=sizes["Shared_Clean"] + sizes["Shared_Dirty"],
        swapped_bytes=sizes["SwapPss"],
        memory_bytes=machine.spec.memory_bytes,
        guest_used_bytes=await _guest_used(running, ctx.scaled(_GUEST_S, machine)),
        cpu_seconds=sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"),
    )


async def _guest_used(running: Running, timeout_s: float) -> int:
    try:
        async with asyncio.timeout(timeout_s):
            info = await running.agent.system_info()
    except (ArcboxError, TimeoutError):
        return 0
    return max(0, info.total_memory_bytes - info.available_memory_bytes)


def _fields(text: str) -> dict[str, int]:
    """Read the lines ``Name:  123 kB`` of a file below /proc, in bytes."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB":  # noqa: PLR2004
            found[words[0].rstrip(":")] = int(words[1]) * _KIB
    return found
