"""Devices that come and go while QEMU runs: disks with programs, and directories."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from arcboxd.errors import ArcboxError, HypervisorError, MachineStateError, TooLateError
from arcboxd.hypervisor.base import ShareSlot
from arcboxd.hypervisor.qemu.argv import (
    PLUG_BUS,
    bundle_device,
    disk_node,
    share_device,
    share_slots,
)
from arcboxd.hypervisor.qemu.monitor import Monitor

_POLL_S = 0.02


async def plug_bundle(monitor: Monitor, node: str, disk: Path) -> None:
    """Plug a disk with programs in. Idempotent. Source: QMP ``blockdev-add``.

    Raises:
        HypervisorError: QEMU refused it, or did not answer.
        MachineStateError: The machine has no place for it.
    """
    found = await devices(monitor)
    if node in found:
        return
    _check(found)
    await monitor.execute("blockdev-add", disk_node(node, disk, "raw", read_only=True))
    try:
        await monitor.execute("device_add", bundle_device(node))
    except BaseException:
        with suppress(ArcboxError):
            await monitor.execute("blockdev-del", {"node-name": node})
        raise


async def plug_share(monitor: Monitor, slot: ShareSlot, links: Path, directory: Path) -> None:
    """Plug a directory in, by the link that the slot's file system has as its path.

    Source: QMP ``device_add``.

    Raises:
        HypervisorError: QEMU refused it, or did not answer.
        MachineStateError: The machine has no place for it.
    """
    _check(await devices(monitor))
    link = links / slot.tag
    try:
        link.unlink(missing_ok=True)
        link.symlink_to(directory)
    except OSError as error:
        raise HypervisorError(f"cannot make {link}: {error.strerror}") from error
    await monitor.execute("device_add", share_device(slot))


async def unplug_share(monitor: Monitor, slot: ShareSlot, links: Path, timeout_s: float) -> None:
    """Ask the guest to let go of a share, and wait until it has. Source: QMP ``device_del``.

    Raises:
        HypervisorError: QEMU refused it, or did not answer.
        TooLateError: The guest did not let go within ``timeout_s`` seconds.
    """
    name = slot.tag
    if name in await devices(monitor):
        await monitor.execute("device_del", {"id": name})
        try:
            async with asyncio.timeout(timeout_s):
                while name in await devices(monitor):  # noqa: ASYNC110 - a device has no event of ours
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise TooLateError(f"the guest did not let go of a share in {timeout_s:g} s") from error
    (links / slot.tag).unlink(missing_ok=True)


async def shares(monitor: Monitor) -> tuple[ShareSlot, ...]:
    """Tell which places of shares are taken.

    Raises:
        HypervisorError: The monitor does not answer.
    """
    found = await devices(monitor)
    return tuple(slot for slot in share_slots() if slot.tag in found)


async def devices(monitor: Monitor) -> frozenset[str]:
    """Name the devices that have a name. Source: QMP ``qom-list``.

    Raises:
        HypervisorError: The monitor does not answer.
    """
    answer = await monitor.execute("qom-list", {"path": "/machine/peripheral"})
    if not isinstance(answer, list):
        raise HypervisorError("QEMU does not list its devices")
    return frozenset(str(item.get("name")) for item in answer if isinstance(item, dict))


def _check(found: frozenset[str]) -> None:
    if PLUG_BUS not in found:
        raise MachineStateError(
            "nothing can be plugged into this machine: it was started by an older version",
            hint="stop and start it",
        )
