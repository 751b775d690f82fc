"""A machine's state to a file and back, by QEMU's migration.

The file is handed to QEMU as a descriptor: no path is parsed, no helper process runs, and QEMU's
sandbox may forbid new ones. Source: QMP ``getfd``, ``migrate``, ``migrate-incoming``.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from arcboxd.errors import HypervisorError, TooLateError
from arcboxd.hypervisor.qemu.monitor import Monitor

SHARED_RAM_STAYS = "x-ignore-shared"
"""The capability by which RAM that lives in a shared file is left out of the stream."""

_FD_NAME = "state"
_POLL_S = 0.002


async def save_state(
    monitor: Monitor, path: Path, *, shared_ram_stays: bool, timeout_s: float
) -> None:
    """Write a stopped machine's devices, and its RAM unless that stays in its file.

    The file is complete and on the disk when this returns.

    Raises:
        HypervisorError: QEMU cannot save the machine; it is as it was.
        TooLateError: It took longer than ``timeout_s`` seconds.
    """
    await _capability(monitor, on=shared_ram_stays)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        await monitor.send_fd(_FD_NAME, fd)
        await monitor.execute("migrate", {"uri": f"fd:{_FD_NAME}"})
        await _settled(monitor, timeout_s)
        await asyncio.to_thread(os.fsync, fd)
    finally:
        os.close(fd)


async def load_state(
    monitor: Monitor, path: Path, *, shared_ram_stays: bool, timeout_s: float
) -> None:
    """Read a machine's state into a QEMU that waits for it (``-incoming defer``).

    The machine is paused when this returns.

    Raises:
        HypervisorError: The state does not fit this QEMU.
        TooLateError: It took longer than ``timeout_s`` seconds.
    """
    await _capability(monitor, on=shared_ram_stays)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        await monitor.send_fd(_FD_NAME, fd)
        await monitor.execute("migrate-incoming", {"uri": f"fd:{_FD_NAME}"})
        await _settled(monitor, timeout_s)
    finally:
        os.close(fd)


async def _capability(monitor: Monitor, *, on: bool) -> None:
    await monitor.execute(
        "migrate-set-capabilities",
        {"capabilities": [{"capability": SHARED_RAM_STAYS, "state": on}]},
    )


async def _settled(monitor: Monitor, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                answer = await monitor.execute("query-migrate")
                status = answer.get("status") if isinstance(answer, dict) else None
                if status == "completed":
                    return
                if status in {"failed", "cancelled"}:
                    why = answer.get("error-desc", status) if isinstance(answer, dict) else status
                    raise HypervisorError(f"QEMU could not move the machine's state: {why}")
                await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
        raise TooLateError(f"the machine's state took longer than {timeout_s:g} s") from error
