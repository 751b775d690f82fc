"""Mounts: what is recorded, plugged in and mounted stays one, whatever fails or ends meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from arcboxd.domain.machine import DirectoryMount, MachineState, NewMachine
from arcboxd.errors import (
    HypervisorError,
    InvalidArgumentError,
    MountExistsError,
    MountNotFoundError,
    PreconditionError,
    StoreError,
)
from arcboxd.hypervisor.base import ShareSlot
from arcboxd.machines.mounts import MountStatus
from arcboxd.machines.service import Machines
from arcboxd.paths import Paths
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from arcboxd.wire.pb.arcbox.v1 import machine_pb2
from tests.fakes import FakeAgent, World
from tests.integration.daemon.conftest import Daemon
from tests.integration.daemon.test_recovery import reopened


@pytest.fixture
def host(directory: Path) -> Path:
    """Give directories of the host to mount."""
    for name in ("src", "data", "more"):
        (directory / "host" / name).mkdir(parents=True)
    return directory / "host"


@pytest.fixture
async def running(machines: Machines, host: Path) -> Machines:
    """Give a machine that runs, with one writable mount and one that is not."""
    mounts = (
        DirectoryMount(f"{host}/src", "/src"),
        DirectoryMount(f"{host}/data", "/mnt/data/", readonly=True),
    )
    await machines.create(NewMachine("dev", mounts=mounts))
    await machines.start("dev")
    return machines


async def _states(machines: Machines) -> dict[str, str]:
    return {each.mount.guest_path: each.state for each in await machines.list_mounts("dev")}


def _agent(machines: Machines) -> FakeAgent:
    (running,) = machines.context.running.values()
    assert isinstance(running.agent, FakeAgent)
    return running.agent


async def _until_mounted(world: World) -> None:
    async with asyncio.timeout(5):
        while world.mounted.get("dev") != BOTH:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


BOTH = {"/src": "arcbox-rw0", "/mnt/data": "arcbox-ro0:ro"}


async def test_mounts_are_there_when_a_start_returns(
    running: Machines, world: World, host: Path
) -> None:
    assert world.shares["dev"] == {
        ShareSlot(0, readonly=False): host / "src",
        ShareSlot(0, readonly=True): host / "data",
    }
    assert world.mounted["dev"] == BOTH
    assert await _states(running) == {"/src": "mounted", "/mnt/data": "mounted"}
    await running.stop("dev")
    assert await _states(running) == {"/src": "waiting", "/mnt/data": "waiting"}
    world.shares.clear()
    world.mounted.clear()
    await running.start("dev")
    assert world.mounted["dev"] == BOTH


async def test_a_mount_that_cannot_be_made_keeps_nothing_else_from_it(
    running: Machines, world: World, host: Path
) -> None:
    await running.stop("dev")
    world.shares.clear()
    world.mounted.clear()
    (host / "src").rmdir()
    with running.context.events.subscribe("dev") as events:
        await running.start("dev")
        told = [(await anext(events)).what for _ in range(2)]
    assert any("src is not mounted on /src: the host path" in str(each) for each in told)
    src, data = await running.list_mounts("dev")
    assert (src.state, data.state) == ("failed", "mounted")
    assert "No such file" in src.detail
    assert running.inspect("dev").state is MachineState.RUNNING
    # The same again, once it can be.
    (host / "src").mkdir()
    status = await running.add_mount("dev", DirectoryMount(f"{host}/src", "/src"))
    assert status.state == "mounted"
    assert world.mounted["dev"] == BOTH
    assert len(running.inspect("dev").spec.mounts) == 2


async def test_what_the_guest_refuses_is_not_left_plugged_in(
    running: Machines, world: World, host: Path
) -> None:
    world.mounts_fail.add("/more")
    before = dict(world.shares["dev"])
    with pytest.raises(PreconditionError, match="cannot be mounted in the guest"):
        await running.add_mount("dev", DirectoryMount(f"{host}/more", "/more"))
    assert world.shares["dev"] == before
    assert set(await _states(running)) == {"/src", "/mnt/data"}


async def test_a_mount_is_added_and_removed_while_it_runs(
    running: Machines, world: World, host: Path
) -> None:
    added = await running.add_mount("dev", DirectoryMount(f"{host}/more", "//more/./"))
    assert added == MountStatus(
        DirectoryMount(f"{host}/more", "/more", slot=1), "9p", "mounted", ""
    )
    assert world.mounted["dev"] == {**BOTH, "/more": "arcbox-rw1"}
    await running.remove_mount("dev", "/src/")
    assert world.mounted["dev"] == {"/mnt/data": "arcbox-ro0:ro", "/more": "arcbox-rw1"}
    assert ShareSlot(0, readonly=False) not in world.shares["dev"]
    # The slot that is free is given away again, those of the others are kept.
    again = await running.add_mount("dev", DirectoryMount(f"{host}/src", "/other"))
    assert again.mount.slot == 0
    with pytest.raises(MountNotFoundError, match="no mount on '/src'"):
        await running.remove_mount("dev", "/src")


async def test_a_stopped_machine_is_only_recorded(
    running: Machines, world: World, host: Path
) -> None:
    await running.stop("dev")
    status = await running.add_mount("dev", DirectoryMount(f"{host}/more", "/more"))
    assert (status.state, status.filesystem) == ("waiting", "")
    await running.remove_mount("dev", "/src")
    world.shares.clear()
    world.mounted.clear()
    await running.start("dev")
    assert world.mounted["dev"] == {"/mnt/data": "arcbox-ro0:ro", "/more": "arcbox-rw1"}


async def test_one_that_is_in_use_stays(running: Machines, world: World) -> None:
    world.mounts_busy.add("/src")
    with pytest.raises(PreconditionError, match=r"in use in the guest by vi \(7\)"):
        await running.remove_mount("dev", "/src")
    assert world.mounted["dev"] == BOTH
    assert await _states(running) == {"/src": "mounted", "/mnt/data": "mounted"}


async def test_a_removal_that_cannot_be_recorded_is_undone(
    running: Machines, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_args: object, **_more: object) -> None:
        raise StoreError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(running.context.registry, "change", fail)
        with pytest.raises(StoreError):
            await running.remove_mount("dev", "/src")
    assert world.mounted["dev"] == BOTH
    assert len(world.shares["dev"]) == 2


async def test_a_guest_that_reboots_gets_its_mounts_again(running: Machines, world: World) -> None:
    world.mounted.clear()
    _agent(running).new_session()
    await _until_mounted(world)
    assert len(world.shares["dev"]) == 2


async def test_a_machine_is_saved_without_its_mounts_and_gets_them_back(
    running: Machines, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_save: list[object] = []
    vm = world.vms["dev"]
    save = type(vm).save

    async def watched(self: object, *args: object, **more: object) -> object:
        at_save.append((dict(world.shares["dev"]), dict(world.mounted["dev"])))
        return await save(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(type(vm), "save", watched)
    await running.create_snapshot("dev", "live")
    assert at_save == [({}, {})]
    assert world.mounted["dev"] == BOTH
    await running.suspend("dev")
    assert at_save[1:] == [({}, {})]
    assert await _states(running) == {"/src": "waiting", "/mnt/data": "waiting"}
    await running.resume("dev")
    assert world.mounted["dev"] == BOTH


async def test_a_mount_in_use_refuses_a_suspend_and_all_is_as_before(
    running: Machines, world: World
) -> None:
    world.mounts_busy.add("/mnt/data")  # the second one: the first is brought back
    with pytest.raises(PreconditionError, match="in use in the guest") as refused:
        await running.suspend("dev")
    assert "arcbox mount rm dev" in refused.value.hint
    machine = running.inspect("dev")
    assert (machine.state, machine.detail) == (MachineState.RUNNING, "")
    assert world.mounted["dev"] == BOTH
    with pytest.raises(PreconditionError, match="in use in the guest"):
        await running.create_snapshot("dev", "no")
    assert world.mounted["dev"] == BOTH
    assert await running.snapshots("dev") == []


async def test_a_suspend_that_fails_brings_them_back(running: Machines, world: World) -> None:
    world.saves_fail = HypervisorError("no")
    with pytest.raises(HypervisorError):
        await running.suspend("dev")
    assert world.mounted["dev"] == BOTH
    # Also after that by the new link that it made.
    world.mounted.clear()
    _agent(running).new_session()
    await _until_mounted(world)


async def test_a_new_daemon_asks_what_is_plugged_in(
    running: Machines, paths: Paths, world: World, directory: Path
) -> None:
    # One of them was lost meanwhile, as after a crash in the middle of a removal.
    del world.shares["dev"][ShareSlot(0, readonly=True)]
    del world.mounted["dev"]["/mnt/data"]
    async with reopened(paths, world, directory / "copy") as second:
        assert await _states(second) == {"/src": "mounted", "/mnt/data": "mounted"}
        assert world.mounted["dev"] == BOTH
        await second.remove_mount("dev", "/mnt/data")
        assert set(world.mounted["dev"]) == {"/src"}


async def test_a_clone_wants_the_same_mounts(running: Machines, world: World) -> None:
    await running.clone("dev", "other")
    assert running.inspect("other").spec.mounts == running.inspect("dev").spec.mounts
    assert world.mounted["dev"] == BOTH


async def test_the_calls_as_a_client_makes_them(daemon: Daemon, host: Path) -> None:
    wanted = machine_pb2.DirectoryMount(host_path=f"{host}/src", guest_path="/src", readonly=True)
    await daemon.create(mounts=[wanted])
    info = await daemon.machine.Inspect(machine_pb2.InspectMachineRequest(id="dev"))
    assert list(info.mounts) == [wanted]
    more = machine_pb2.DirectoryMount(host_path=f"{host}/more", guest_path="/more")
    made = await daemon.host.AddMount(host_pb2.AddMountRequest(id="dev", mount=more))
    assert (made.guest_path, made.state) == ("/more", "waiting")
    await daemon.machine.Start(machine_pb2.StartMachineRequest(id="dev"))
    listed = await daemon.host.ListMounts(host_pb2.ListMountsRequest(id="dev"))
    assert [(m.host_path, m.readonly, m.filesystem, m.state) for m in listed.mounts] == [
        (f"{host}/src", True, "9p", "mounted"),
        (f"{host}/more", False, "9p", "mounted"),
    ]
    await daemon.host.RemoveMount(host_pb2.RemoveMountRequest(id="dev", guest_path="/src"))
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await daemon.host.RemoveMount(host_pb2.RemoveMountRequest(id="dev", guest_path="/src"))
    assert missing.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as nowhere:
        await daemon.create(
            "x", mounts=[machine_pb2.DirectoryMount(host_path="/no", guest_path="/a")]
        )
    assert nowhere.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_cannot_be_leaves_no_trace(running: Machines, host: Path) -> None:
    before = running.inspect("dev")
    for wanted, error in (
        (DirectoryMount(f"{host}/more", "/src/sub"), MountExistsError),
        (DirectoryMount(f"{host}/more", "/mnt"), MountExistsError),
        (DirectoryMount(f"{host}/more", "/src"), MountExistsError),
        (DirectoryMount(f"{host}/src", "/src", readonly=True), MountExistsError),
        (DirectoryMount(f"{host}/nothing", "/more"), InvalidArgumentError),
        (DirectoryMount(f"{host}/more", "/etc"), InvalidArgumentError),
    ):
        with pytest.raises(error):
            await running.add_mount("dev", wanted)
    assert running.inspect("dev") == before
