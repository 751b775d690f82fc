"""A machine's state to a file and back, by QEMU's migration.

The file is handed to QEMU as a descriptor: no path is parsed, no helper process runs, and QEMU's
sandbox may forbid new ones. Source: QMP ``getfd``, ``migrate``, ``migrate-incoming``.
"""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

from arcboxd.errors import ArcboxError, HypervisorError, NoRoomError, TooLateError
from arcboxd.hypervisor.qemu.monitor import Monitor

SHARED_RAM_STAYS = "x-ignore-shared"
"""The capability by which RAM that lives in a shared file is left out of the stream."""

_FD_NAME = "state"
_POLL_S = 0.002
_POLL_MOST_S = 0.1
_GIVE_UP_S = 10.0
_UNBOUNDED_BYTES_S = 1 << 40
"""QEMU's own bound is 128 MiB/s, for networks."""
_SLOWEST_BYTES_S = 16 << 20
_UNDER_WAY = frozenset({"setup", "active", "pre-switchover", "device", "cancelling"})
_FULL = (errno.ENOSPC, errno.EDQUOT)


async def save_state(
    monitor: Monitor, path: Path, *, shared_ram_stays: bool, timeout_s: float
) -> None:
    """Write a stopped machine's devices, and its RAM unless that stays in its file.

    The file is complete and on the disk when this returns. If it fails or is cancelled, nothing is
    written any more, unless it is cancelled again meanwhile.

    Raises:
        HypervisorError: QEMU cannot save the machine; it is as it was.
        NoRoomError: The disk is full.
        TooLateError: It took longer than ``timeout_s`` seconds.
    """
    await _capability(monitor, on=shared_ram_stays)
    await monitor.execute("migrate-set-parameters", {"max-bandwidth": _UNBOUNDED_BYTES_S})
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            await monitor.send_fd(_FD_NAME, fd)
            try:
                await monitor.execute("migrate", {"uri": f"fd:{_FD_NAME}"})
                await _settled(monitor, timeout_s)
            except BaseException:
                await give_up(monitor)
                raise
            await asyncio.to_thread(os.fsync, fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise _failed(str(error)) from error


async def load_state(
    monitor: Monitor, path: Path, *, shared_ram_stays: bool, timeout_s: float
) -> None:
    """Read a machine's state into a QEMU that waits for it (``-incoming defer``).

    The machine is paused when this returns. A large file has a second more for each 16 MiB.

    Raises:
        HypervisorError: The state does not fit this QEMU.
        TooLateError: It took longer than ``timeout_s`` seconds.
    """
    await _capability(monitor, on=shared_ram_stays)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _failed(str(error)) from error
    try:
        await monitor.send_fd(_FD_NAME, fd)
        await monitor.execute("migrate-incoming", {"uri": f"fd:{_FD_NAME}"})
        await _settled(monitor, timeout_s + os.fstat(fd).st_size / _SLOWEST_BYTES_S)
    finally:
        os.close(fd)


async def give_up(monitor: Monitor) -> None:
    """End a save that is under way, if one is, so that the machine can go on.

    A machine that went on with it under way would be halted at its end, as if moved elsewhere.

    Raises:
        HypervisorError: It does not end, or the monitor does not answer.
    """
    if not await _under_way(monitor):
        return
    await monitor.execute("migrate_cancel")
    try:
        async with asyncio.timeout(_GIVE_UP_S):
            while await _under_way(monitor):  # noqa: ASYNC110 - QEMU tells only who asks
                await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
        raise HypervisorError("QEMU does not give up to save the machine's state") from error


async def _under_way(monitor: Monitor) -> bool:
    return (await _progress(monitor)).get("status") in _UNDER_WAY


async def _capability(monitor: Monitor, *, on: bool) -> None:
    await monitor.execute(
        "migrate-set-capabilities",
        {"capabilities": [{"capability": SHARED_RAM_STAYS, "state": on}]},
    )


async def _settled(monitor: Monitor, timeout_s: float) -> None:
    delay_s = _POLL_S
    try:
        async with asyncio.timeout(timeout_s):
            while (status := (found := await _progress(monitor)).get("status")) != "completed":
                if status in {"failed", "cancelled"}:
                    raise _failed(str(found.get("error-desc", status)))
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 1.1, _POLL_MOST_S)
    except TimeoutError as error:
        raise TooLateError(f"the machine's state took longer than {timeout_s:g} s") from error


async def _progress(monitor: Monitor) -> dict[str, object]:
    answer = await monitor.execute("query-migrate")
    return answer if isinstance(answer, dict) else {}


def _failed(why: str) -> ArcboxError:
    if any(os.strerror(number) in why for number in _FULL):
        return NoRoomError(f"the machine's state does not fit on the disk: {why}")
    return HypervisorError(f"QEMU could not move the machine's state: {why}")
