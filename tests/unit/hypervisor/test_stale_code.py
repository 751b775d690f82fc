"""When a virtual processor is taken for stuck, and what is done then."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from arcboxd.errors import HypervisorError
from arcboxd.hypervisor.qemu import stale_code
from arcboxd.hypervisor.qemu.monitor import Monitor
from arcboxd.hypervisor.qemu.stale_code import Place, may_hold, places, still_there

STACK = 0xFFFFC900006BFD38


def registers(*cpus: tuple[int, int, int]) -> str:
    """Write what QEMU 7.2 answers, shortened, for processors by stack, level and halt."""
    return "\r\n".join(
        f"\r\nCPU#{number}\r\nRAX=0000000000000001 RBX=ffff88803fd31c40\r\n"
        f"RSI=0000000000000000 RDI=ffffffff81a45001 RBP=ffffc900006bfd90 RSP={stack:016x}\r\n"
        f"RIP=ffffffff81c00bca RFL=00000093 [--S-A-C] CPL={level} II=0 A20=1 SMM=0 HLT={halted}\r\n"
        "ES =0000 0000000000000000 ffffffff 00c00100"
        for number, (stack, level, halted) in enumerate(cpus)
    )


def test_the_monitors_registers_are_read() -> None:
    text = registers((STACK, 0, 0), (0x7FFFFFFFE6F8, 3, 0), (STACK, 0, 1))
    assert places(text) == [Place(0, STACK, True), Place(1, 0x7FFFFFFFE6F8, False)]


def test_a_processor_that_is_not_in_long_mode_is_left_out() -> None:
    early = "\r\nCPU#0\r\nEAX=00000000\r\nESP=00006f94\r\nEIP=0000b7b9 CPL=0 II=0 SMM=0 HLT=0\r\n"
    assert places(early + registers((STACK, 0, 0))) == [Place(0, STACK, True)]


@pytest.mark.parametrize(
    ("looks", "stuck"),
    [
        ([[(STACK, 0, 0)]] * 3, [0]),
        ([[(STACK, 0, 0)], [(STACK - 600, 0, 0)], [(STACK + 40, 0, 0)]], [0]),
        ([[(STACK, 0, 0)], [(STACK, 3, 0)], [(STACK, 0, 0)]], []),
        ([[(STACK, 0, 0)], [(STACK, 0, 1)], [(STACK, 0, 0)]], []),
        ([[(STACK, 0, 0)], [(STACK + 0x4000, 0, 0)], [(STACK, 0, 0)]], []),
        ([[(STACK, 3, 0), (STACK, 0, 0)]] * 3, [1]),
    ],
    ids=["there", "near", "user", "halted", "elsewhere", "second"],
)
def test_who_stays_at_one_place_of_the_kernel_is_stuck(
    looks: list[list[tuple[int, int, int]]], stuck: list[int]
) -> None:
    assert still_there([places(registers(*look)) for look in looks]) == stuck


def test_only_old_emulators_of_many_x86_processors_are_watched() -> None:
    assert may_hold("x86_64", 2, (7, 2))
    assert not may_hold("x86_64", 1, (7, 2))
    assert not may_hold("aarch64", 2, (7, 2))
    assert not may_hold("x86_64", 2, (8, 1))
    assert not may_hold("x86_64", 2, (10, 0))


class Told(Monitor):
    """A monitor that tells the same registers each time, or none."""

    def __init__(self, registers: str) -> None:
        super().__init__("dev", Path("/nowhere"))
        self._registers = registers
        self.looks = 0

    async def execute(
        self, command: str, arguments: dict[str, object] | None = None, *, timeout_s: float = 10
    ) -> object:
        await asyncio.sleep(0)
        assert (command, arguments) == (
            "human-monitor-command",
            {"command-line": "info registers -a"},
        )
        self.looks += 1
        if not self._registers:
            raise HypervisorError("it is gone")
        return self._registers


async def watched(
    monitor: Told, monkeypatch: pytest.MonkeyPatch, *, busy: float = 1.0, seconds: float = 0.3
) -> int:
    """Watch for a while, with the time between looks a thousandth of the usual; count the frees."""
    monkeypatch.setattr(stale_code, "_LOOK_S", 0.0025)
    used = freed = 0

    def cpu_seconds() -> float:
        nonlocal used
        used += 1
        return used * busy

    async def free() -> int:
        nonlocal freed
        freed += 1
        return 7

    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stale_code.watch("dev", monitor, cpu_seconds, free)
    return freed


async def test_stuck_processors_are_freed_ever_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Told(registers((STACK, 0, 0)))
    freed = await watched(monitor, monkeypatch)
    assert 1 <= freed <= 6
    assert 3 * freed <= monitor.looks <= 3 * freed + 3


async def test_a_machine_at_rest_is_not_even_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Told(registers((STACK, 0, 0)))
    assert await watched(monitor, monkeypatch, busy=0.0) == 0
    assert monitor.looks == 0


async def test_a_monitor_that_fails_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Told("")
    assert await watched(monitor, monkeypatch) == 0
    assert monitor.looks > 3
