"""A real QEMU's stub for debuggers, as it is used to have code translated anew."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from arcboxd.errors import HypervisorError
from arcboxd.hypervisor.qemu import stale_code
from arcboxd.hypervisor.qemu.gdb_stub import GdbStub
from arcboxd.hypervisor.qemu.monitor import Monitor

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = pytest.mark.skipif(QEMU is None, reason="there is no qemu-system-x86_64")

BIOS = 0xF0000
RAM = 0x10000


@pytest.fixture
async def monitor(tmp_path: Path) -> AsyncIterator[Monitor]:
    """Connect to a machine of two processors that finds nothing to boot from."""
    assert QEMU is not None
    argv = [
        *(QEMU, "-machine", "q35", "-accel", "tcg", "-smp", "2", "-m", "64", "-nodefaults"),
        *("-display", "none", "-qmp", f"unix:{tmp_path}/qmp,server=on,wait=off"),
    ]
    with subprocess.Popen(argv) as qemu:
        try:
            for _ in range(200):
                if (tmp_path / "qmp").exists():
                    break
                await asyncio.sleep(0.05)
            connected = Monitor("dev", tmp_path / "qmp")
            await connected.connect()
            yield connected
            await connected.close()
        finally:
            qemu.kill()


async def status(monitor: Monitor) -> str:
    """Tell the machine's state as QEMU names it."""
    answer = await monitor.execute("query-status")
    assert isinstance(answer, dict)
    return str(answer["status"])


async def test_a_machine_that_runs_goes_on(monitor: Monitor, tmp_path: Path) -> None:
    where = tmp_path / "a,b.sock"
    for _ in range(3):
        # There is no kernel yet, whose addresses could be on a stack.
        assert await stale_code.free(monitor, where) == 0
        assert await status(monitor) == "running"
        assert not where.exists()


async def test_a_machine_that_is_halted_stays_so(monitor: Monitor, tmp_path: Path) -> None:
    await monitor.execute("stop")
    assert await stale_code.free(monitor, tmp_path / "stub") == 0
    assert await status(monitor) == "paused"


async def test_what_a_daemon_left_behind_is_no_hindrance(monitor: Monitor, tmp_path: Path) -> None:
    await monitor.human(f"gdbserver unix:{tmp_path}/left,server=on,wait=off")
    assert await stale_code.free(monitor, tmp_path / "stub") == 0
    assert await status(monitor) == "running"


async def test_a_stub_that_cannot_be_reached_leaves_the_machine_running(
    monitor: Monitor, tmp_path: Path
) -> None:
    with pytest.raises(HypervisorError, match="stub for debuggers"):
        await stale_code.free(monitor, tmp_path / "no such directory" / "stub")
    assert await status(monitor) == "running"


async def test_cancelled_it_lets_the_machine_go_on(monitor: Monitor, tmp_path: Path) -> None:
    task = asyncio.create_task(stale_code.free(monitor, tmp_path / "stub"))
    for _ in range(1000):
        # Asked between its own commands, which wait for one another.
        if await status(monitor) == "paused":
            break
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert await status(monitor) == "running"
    assert not (tmp_path / "stub").exists()


async def test_the_stub_reads_and_writes_memory(monitor: Monitor, tmp_path: Path) -> None:
    await monitor.human(f"gdbserver unix:{tmp_path}/stub,server=on,wait=off")
    reader, writer = await asyncio.open_unix_connection(tmp_path / "stub")
    with contextlib.closing(writer):
        stub = GdbStub(reader, writer)
        await stub.begin()
        assert await stub.threads() == ["01", "02"]
        await stub.choose("02")
        await stub.registers()  # it has just been started, perhaps at 0
        await stub.choose("01")
        assert (await stub.registers()).rip
        await stub.write(RAM, b"\x00$#}*\xff")
        assert await stub.read(RAM, 6) == b"\x00$#}*\xff"
        assert await stub.read(BIOS, 16)
        with pytest.raises(ValueError, match="no processor '07'"):
            await stub.choose("07")


async def test_a_stub_that_says_nonsense_is_an_error(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    with theirs, contextlib.closing(writer):
        theirs.sendall(b"+$E01#a6+$zz#f4+$00#60")
        stub = GdbStub(reader, writer)
        with pytest.raises(ValueError, match="no processor '01'"):
            await stub.choose("01")
        with pytest.raises(ValueError, match="hexadecimal"):
            await stub.read(RAM, 1)
        with pytest.raises(ValueError, match="1 bytes are not the registers"):
            await stub.registers()
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            await stub.threads()
