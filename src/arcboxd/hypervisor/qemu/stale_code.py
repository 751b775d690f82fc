"""Frees virtual processors that QEMU keeps at code which is no longer there.

While one virtual processor translates a piece of code, another may change it. QEMU before 8.1
then keeps the translation of what was there before (the change that ended this: "accel/tcg: Always
lock pages before translation"). Linux changes its own code whenever a jump label is switched, and
on x86 puts a breakpoint there meanwhile. A processor that comes to the translation of a breakpoint
which is gone runs Linux' handler, is sent back to the same place, and so on for ever; soon all
processors are there. Source: arch/x86/kernel/alternative.c, text_poke_bp_batch, and
arch/x86/kernel/kprobes/core.c, kprobe_int3_handler.

Such a processor stays in the kernel, at one place of one stack. To free it, the machine is stopped
for some 20 ms, and what lies at the addresses on that stack, of which one is where the breakpoint
was, is written with itself: QEMU forgets its translations of memory that is written to. The stub
for debuggers can do that. A processor that was only busy goes on as if nothing had been.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from struct import iter_unpack
from typing import NamedTuple

from arcboxd.aio import complete
from arcboxd.errors import HypervisorError
from arcboxd.hypervisor.qemu.gdb_stub import GdbStub
from arcboxd.hypervisor.qemu.monitor import Monitor

_FIXED_IN = (8, 1)
_LOOK_S = 2.5
_LOOKS = 3
_LOOK_MOST_S = 60.0
_BUSY_SHARE = 0.04
"""Of a host's processor; a machine that has less has no processor that runs for ever."""
_NEAR_BYTES = 2048
_STACK_BYTES = 1024
_PAGE = 4096
_BEFORE = 8
_AROUND = 16
"""The breakpoint is at the address or right before it."""
_STUB_S = 5.0
_KERNEL = 0xFFFF_8000_0000_0000
_CPU = re.compile(
    r"^CPU#(\d+)(?:(?!^CPU#).)*?\bRSP=([0-9a-f]{16})(?:(?!^CPU#).)*?\bCPL=(\d).*?\bHLT=(\d)",
    re.MULTILINE | re.DOTALL,
)

_log = logging.getLogger(__name__)


def may_hold(arch: str, cpus: int, version: tuple[int, int]) -> bool:
    """Tell whether a QEMU that emulates such a machine may keep code that is gone."""
    return arch == "x86_64" and cpus > 1 and version < _FIXED_IN


class Place(NamedTuple):
    """Where a processor was seen."""

    cpu: int
    stack: int
    in_kernel: bool


def places(registers: str) -> list[Place]:
    """Read the human monitor's ``info registers -a`` of an x86-64 machine; halted ones are out."""
    return [
        Place(int(cpu), int(stack, 16), level == "0")
        for cpu, stack, level, halted in _CPU.findall(registers)
        if halted == "0"
    ]


def still_there(looks: list[list[Place]]) -> list[int]:
    """Tell which processors were in the kernel, and at one place of one stack, at every look."""
    seen = [{each.cpu: each for each in look if each.in_kernel} for look in looks]
    return [
        cpu
        for cpu in seen[0]
        if all(cpu in look for look in seen)
        and all(abs(a[cpu].stack - b[cpu].stack) < _NEAR_BYTES for a, b in pairwise(seen))
    ]


async def watch(
    name: str,
    monitor: Monitor,
    cpu_seconds: Callable[[], float],
    free: Callable[[], Awaitable[int]],
) -> None:
    """Free the machine's processors whenever some seem to be stuck, until cancelled.

    Args:
        name: The machine's, for the log.
        monitor: Its monitor.
        cpu_seconds: Gives the processor time that its process has used.
        free: Does so, as `free`.
    """
    looks: list[list[Place]] = []
    delay_s, used_s = _LOOK_S, 0.0
    while True:
        await asyncio.sleep(delay_s)
        try:
            before_s, used_s = used_s, cpu_seconds()
            if used_s - before_s < _BUSY_SHARE * delay_s:
                looks, delay_s = [], _LOOK_S
                continue
            looks = [*looks, places(await monitor.human("info registers -a"))][-_LOOKS:]
            if len(looks) < _LOOKS:
                continue
            if not (stuck := still_there(looks)):
                delay_s = _LOOK_S
                continue
            written = await free()
            _log.info("processors %s of %s: %s places translated anew", stuck, name, written)
            # One that is only busy is asked ever less.
            looks, delay_s = [], min(2 * delay_s, _LOOK_MOST_S)
        except (HypervisorError, OSError) as error:
            _log.debug("cannot look at the processors of %s: %s", name, error)


async def free(monitor: Monitor, socket: Path) -> int:
    """Have QEMU forget its translations of the code that a machine's processors are at.

    The machine is stopped meanwhile; one that does not run is left alone.

    Args:
        monitor: Its monitor.
        socket: Where the stub may listen meanwhile.

    Returns:
        How many places were written with what they hold.

    Raises:
        HypervisorError: The monitor or the stub does not answer; the machine goes on.
    """
    status = await monitor.execute("query-status")
    if not isinstance(status, dict) or status.get("status") != "running":
        return 0
    try:
        # A daemon that died in the midst of this may have left one behind.
        await monitor.human("gdbserver none")
        path = str(socket).replace(",", ",,")
        await monitor.human(f"gdbserver unix:{path},server=on,wait=off")
        try:
            async with asyncio.timeout(_STUB_S):
                reader, writer = await asyncio.open_unix_connection(socket)
                with contextlib.closing(writer):
                    stub = GdbStub(reader, writer)
                    await stub.begin()
                    return await _rewrite(stub)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            raise HypervisorError(f"QEMU's stub for debuggers failed: {error!r}") from error
    finally:
        await complete(_let_go(monitor, socket))


async def _let_go(monitor: Monitor, socket: Path) -> None:
    try:
        await monitor.human("gdbserver none")
    finally:
        await monitor.execute("cont")
        await asyncio.to_thread(socket.unlink, missing_ok=True)


async def _rewrite(stub: GdbStub) -> int:
    """Write the memory at the addresses that are on the processors' stacks with itself."""
    written = 0
    for thread in await stub.threads():
        await stub.choose(thread)
        registers = await stub.registers()
        stack = registers.rsp
        # No further than its page: what follows may not be there.
        held = await stub.read(stack, min(_STACK_BYTES, _PAGE - stack % _PAGE))
        words = {registers.rip, *(word for (word,) in iter_unpack("<Q", held[: len(held) & -8]))}
        for address in sorted(word - _BEFORE for word in words if word >= _KERNEL + _BEFORE):
            if there := await stub.read(address, _AROUND):
                await stub.write(address, there)
                written += 1
    return written
