"""What is asked of QEMU to save a machine, and what is made of its answers."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from arcboxd.errors import HypervisorError, NoRoomError, TooLateError
from arcboxd.hypervisor.qemu import migration, nodes
from arcboxd.hypervisor.qemu.monitor import Monitor

ANSWERS: dict[str, object] = {
    "migrate-set-capabilities": {},
    "migrate-set-parameters": {},
    "migrate": {},
}


class Scripted(Monitor):
    """A monitor that answers from a table; a list is told item by item, its last one for ever."""

    def __init__(self, **answers: object) -> None:
        super().__init__("dev", Path("/nowhere"))
        self._answers = {key.replace("_", "-"): answer for key, answer in answers.items()}
        self.asked: list[tuple[str, dict[str, object] | None]] = []

    async def execute(
        self, command: str, arguments: dict[str, object] | None = None, *, timeout_s: float = 10
    ) -> object:
        await asyncio.sleep(0)
        self.asked.append((command, arguments))
        answer = (ANSWERS | self._answers)[command.replace("_", "-")]
        if isinstance(answer, list) and command == "query-migrate":
            return answer.pop(0) if len(answer) > 1 else answer[0]
        return answer

    async def send_fd(self, name: str, fd: int) -> None:
        os.write(fd, b"state")

    @property
    def commands(self) -> list[str]:
        return [command for command, _ in self.asked]


async def _save(monitor: Monitor, path: Path, timeout_s: float = 5) -> None:
    await migration.save_state(monitor, path, shared_ram_stays=False, timeout_s=timeout_s)


async def test_a_save_is_waited_for(tmp_path: Path) -> None:
    status: list[object] = [{"status": s} for s in ("setup", "active", "device", "completed")]
    monitor = Scripted(query_migrate=status)
    await _save(monitor, tmp_path / "state")
    assert (tmp_path / "state").read_bytes() == b"state"
    assert "migrate_cancel" not in monitor.commands


@pytest.mark.parametrize(
    ("why", "kind"),
    [
        ("Unable to write to file: No space left on device", NoRoomError),
        ("Unable to write to file: Disk quota exceeded", NoRoomError),
        ("Unable to write to file: Input/output error", HypervisorError),
    ],
)
async def test_why_a_save_failed(tmp_path: Path, why: str, kind: type[Exception]) -> None:
    monitor = Scripted(query_migrate={"status": "failed", "error-desc": why})
    with pytest.raises(kind, match=why.rpartition(": ")[2]):
        await _save(monitor, tmp_path / "state")


async def test_a_disk_that_is_full_at_once(tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="No such file"):
        await _save(Scripted(), tmp_path / "none" / "state")


async def test_a_save_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    monitor = _Endless()
    with pytest.raises(TooLateError):
        await _save(monitor, tmp_path / "state", timeout_s=0.01)
    assert monitor.commands[-3:] == ["migrate_cancel", "query-migrate", "query-migrate"]


async def test_a_cancelled_save_is_given_up(tmp_path: Path) -> None:
    monitor = _Endless()
    task = asyncio.ensure_future(_save(monitor, tmp_path / "state"))
    while monitor.commands.count("query-migrate") < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "migrate_cancel" in monitor.commands


class _Endless(Scripted):
    """A save that ends only when it is given up."""

    def __init__(self) -> None:
        super().__init__(query_migrate={"status": "active"}, migrate_cancel={})

    async def execute(
        self, command: str, arguments: dict[str, object] | None = None, *, timeout_s: float = 10
    ) -> object:
        if command == "migrate_cancel":
            self._answers["query-migrate"] = [{"status": "cancelling"}, {"status": "cancelled"}]
        return await super().execute(command, arguments)


@pytest.mark.parametrize("status", ["none", "completed", "failed", "cancelled", None])
async def test_what_is_not_under_way_is_not_given_up(status: str | None) -> None:
    monitor = Scripted(query_migrate={"status": status} if status else {})
    await migration.give_up(monitor)
    assert monitor.commands == ["query-migrate"]


def _node(name: str, drv: str, file: str, *, ro: bool, snapshots: tuple[str, ...] = ()) -> object:
    image = {"snapshots": [{"name": each} for each in snapshots]} if snapshots else {}
    return {"node-name": name, "drv": drv, "file": file, "ro": ro, "image": image}


NODES = [
    _node("b", "qcow2", "/v/b.qcow2", ro=False, snapshots=("arcbox-one",)),
    _node("#block1", "file", "/v/b.qcow2", ro=False),
    _node("a-b", "qcow2", "/v/a-b.qcow2", ro=False, snapshots=("other",)),
    _node("a", "qcow2", "/v/a.qcow2", ro=False),
    _node("agent", "raw", "/c/agent.img", ro=True),
    _node("modules", "raw", "/c/modules.img", ro=True),
    _node("#block2", "qcow2", "/m/template.qcow2", ro=True, snapshots=("arcbox-one",)),
    _node("root", "qcow2", "/m/root.qcow2", ro=False, snapshots=("arcbox-one", "other")),
]


class _Machine(Scripted):
    """A QEMU with three data disks."""

    async def execute(
        self, command: str, arguments: dict[str, object] | None = None, *, timeout_s: float = 10
    ) -> object:
        answer = await super().execute(command, arguments)
        if command == "qom-get":
            assert isinstance(answer, dict)
            assert arguments is not None
            return answer[arguments["property"]]
        return answer


def _machine(device: str = "virtio-balloon-pci") -> _Machine:
    return _Machine(
        query_named_block_nodes=NODES,
        qom_get={"type": "pc-q35-7.2-machine", "kernel": "/c/vmlinux", "initrd": "/c/initramfs"},
        qom_list=[{"name": "type", "type": "string"}, {"name": "x", "type": f"child<{device}>"}],
        transaction={},
        blockdev_snapshot_delete_internal_sync={},
    )


async def test_what_a_machine_is_made_of() -> None:
    hardware = await nodes.hardware(_machine())
    assert hardware.machine_type == "pc-q35-7.2"
    assert (hardware.kernel, hardware.initramfs) == (Path("/c/vmlinux"), Path("/c/initramfs"))
    assert hardware.modules_disk == Path("/c/modules.img")
    assert hardware.agent_disk == Path("/c/agent.img")
    # As a launch orders them, by their files' names.
    assert hardware.data_disks == ("a-b", "a", "b")
    assert hardware.balloon
    assert not (await nodes.hardware(_machine("virtio-rng-pci"))).balloon


async def test_a_snapshot_is_of_every_disk_that_is_written_to() -> None:
    monitor = _machine()
    await nodes.snapshot_disks(monitor, "arcbox-two")
    command, arguments = monitor.asked[-1]
    assert command == "transaction"
    assert arguments is not None
    actions = arguments["actions"]
    assert isinstance(actions, list)
    assert {each["data"]["device"] for each in actions} == {"root", "a", "a-b", "b"}
    assert {each["data"]["name"] for each in actions} == {"arcbox-two"}


async def test_a_snapshot_is_removed_where_it_is() -> None:
    monitor = _machine()
    await nodes.drop_disk_snapshots(monitor, "arcbox-one")
    removed = [arguments for command, arguments in monitor.asked if "delete" in command]
    assert removed == [{"device": name, "name": "arcbox-one"} for name in ("b", "root")]
