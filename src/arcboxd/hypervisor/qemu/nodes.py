"""What a running QEMU is made of and its disks' snapshots, as its monitor tells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from arcboxd.errors import HypervisorError
from arcboxd.hypervisor.base import Hardware
from arcboxd.hypervisor.qemu import plug
from arcboxd.hypervisor.qemu.argv import KUBERNETES_NODE, PLUG_BUS, ROOT_NODE, RUNTIME_NODE
from arcboxd.hypervisor.qemu.monitor import Monitor

_SNAPSHOT_TIMEOUT_S = 300.0
"""QEMU answers nothing meanwhile; it counts each block of the disk."""


async def hardware(monitor: Monitor) -> Hardware:
    """Tell what a machine was launched with, whatever version of ours launched it.

    Source: QMP ``qom-get``, ``qom-list``, ``query-named-block-nodes``.

    Raises:
        HypervisorError: The monitor does not answer.
    """
    files = {str(node["node-name"]): Path(str(node["file"])) for node in await _nodes(monitor)}
    devices = await monitor.execute("qom-list", {"path": "/machine/peripheral-anon"})
    try:
        return Hardware(
            machine_type=await machine_type(monitor),
            kernel=Path(await _machine(monitor, "kernel")),
            initramfs=Path(await _machine(monitor, "initrd")),
            modules_disk=files["modules"],
            agent_disk=files["agent"],
            # Their files' names are their own, and in the order of these they were attached.
            data_disks=tuple(
                path.stem for path in sorted(files[name] for name in await _own_disks(monitor))
            ),
            balloon="virtio-balloon-pci" in str(devices),
            runtime_disk=files.get(RUNTIME_NODE),
            kubernetes_disk=files.get(KUBERNETES_NODE),
            pluggable=PLUG_BUS in await plug.devices(monitor),
        )
    except KeyError as error:
        raise HypervisorError(f"QEMU has no disk {error}") from error


async def machine_type(monitor: Monitor) -> str:
    """Tell the exact name of the board.

    Raises:
        HypervisorError: The monitor does not answer.
    """
    return (await _machine(monitor, "type")).removesuffix("-machine")


async def snapshot_disks(monitor: Monitor, tag: str) -> None:
    """Take a snapshot in each disk that the machine writes to, or in none.

    Source: QMP ``transaction``, ``blockdev-snapshot-internal-sync``.

    Raises:
        HypervisorError: QEMU refused it, or did not answer.
    """
    actions = [
        {"type": "blockdev-snapshot-internal-sync", "data": {"device": name, "name": tag}}
        for name in (ROOT_NODE, *await _own_disks(monitor))
    ]
    await monitor.execute("transaction", {"actions": actions}, timeout_s=_SNAPSHOT_TIMEOUT_S)


async def drop_disk_snapshots(monitor: Monitor, tag: str) -> None:
    """Remove a snapshot from every disk that has it.

    Source: QMP ``blockdev-snapshot-delete-internal-sync``.

    Raises:
        HypervisorError: QEMU refused it, or did not answer.
    """
    for node in await _nodes(monitor):
        image = node["image"]
        snapshots = image.get("snapshots", ()) if isinstance(image, dict) else ()
        if _is_own(node) and any(snapshot["name"] == tag for snapshot in snapshots):
            await monitor.execute(
                "blockdev-snapshot-delete-internal-sync",
                {"device": node["node-name"], "name": tag},
                timeout_s=_SNAPSHOT_TIMEOUT_S,
            )


async def _own_disks(monitor: Monitor) -> list[str]:
    """Name the data disks."""
    names = (str(node["node-name"]) for node in await _nodes(monitor) if _is_own(node))
    return [name for name in names if name != ROOT_NODE]


def _is_own(node: dict[str, object]) -> bool:
    return node["drv"] == "qcow2" and not node["ro"]


async def _nodes(monitor: Monitor) -> list[dict[str, object]]:
    answer = await monitor.execute("query-named-block-nodes", {"flat": True})
    return list(_dicts(answer))


def _dicts(answer: object) -> Iterator[dict[str, object]]:
    if isinstance(answer, list):
        yield from (item for item in answer if isinstance(item, dict))


async def _machine(monitor: Monitor, key: str) -> str:
    return str(await monitor.execute("qom-get", {"path": "/machine", "property": key}))
