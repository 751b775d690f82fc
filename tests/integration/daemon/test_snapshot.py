"""Snapshots and clones, with real qcow2 files: whatever fails or is killed, all is whole."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from arcboxd import errors
from arcboxd.domain.machine import Boot, MachineState, NewMachine
from arcboxd.machines import disk_snapshots, snapshot
from arcboxd.machines.service import Machines
from arcboxd.paths import Paths
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from tests.fakes import STATE, World
from tests.integration.daemon.conftest import Daemon
from tests.integration.daemon.test_recovery import Crash, reopened
from tests.integration.daemon.test_suspend import alive, files, halted, leftovers, until

RUNNING, STOPPED, SUSPENDED = MachineState.RUNNING, MachineState.STOPPED, MachineState.SUSPENDED


def tags(disk: Path) -> list[str]:
    told = subprocess.check_output(["qemu-img", "info", "-U", "--output=json", str(disk)])
    return [each["name"] for each in json.loads(told).get("snapshots", ())]


def write(disk: Path, byte: int) -> None:
    """Let the guest have written something."""
    subprocess.run(
        ["qemu-io", "-c", f"write -q -P {byte} 1M 64k", str(disk)], check=True, capture_output=True
    )


def holds(disk: Path, byte: int) -> bool:
    done = subprocess.run(
        ["qemu-io", "-U", "-r", "-c", f"read -q -P {byte} 1M 64k", str(disk)],
        check=True,
        capture_output=True,
    )
    return b"failed" not in done.stdout


def disks(machines: Machines, ref: str = "dev") -> list[Path]:
    """Give the root disk and the data disk."""
    data = machines.context.paths.volumes / machines.inspect(ref).id / "data.qcow2"
    return [files(machines, ref).disk, data]


def snapshot_files(machines: Machines) -> set[str]:
    return {path.name for path in files(machines).snapshots.glob("*")}


@pytest.fixture
async def made(machines: Machines) -> Machines:
    """A machine with a data disk, both of which hold ones."""
    await machines.create(NewMachine("dev"))
    root, data = disks(machines)
    data.parent.mkdir(parents=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(data), "8M"], check=True)
    for disk in (root, data):
        write(disk, 1)
    return machines


async def bring(machines: Machines, state: MachineState) -> None:
    """Bring a stopped machine to a state."""
    if state is not STOPPED:
        await machines.start("dev")
    if state is SUSPENDED:
        await machines.suspend("dev")


@pytest.mark.parametrize("state", [STOPPED, SUSPENDED, RUNNING])
async def test_a_machine_is_brought_back(made: Machines, world: World, state: MachineState) -> None:
    await bring(made, state)
    world.steps.clear()
    one = await made.create_snapshot("dev", "one")
    assert (one.name, one.memory, one.saved_bytes) == (
        "one",
        state is not STOPPED,
        0 if state is STOPPED else len(STATE),
    )
    assert made.inspect("dev").state is state
    if state is RUNNING:
        assert world.steps == ["pause", "snapshot", "save", "resume"]
        assert world.clocks_set == 1
        await until(lambda: not halted(alive(world)[0]))
    for disk in disks(made):
        assert tags(disk) == ["arcbox-one"]
        write(disk, 2)
    two = await made.create_snapshot("dev", "two")
    for disk in disks(made):
        write(disk, 3)
    assert list(await made.snapshots("dev")) == [one, two]

    if state is RUNNING:
        with pytest.raises(errors.MachineStateError, match="running") as caught:
            await made.restore_snapshot("dev", "one")
        assert "--force" in caught.value.hint
    await made.restore_snapshot("dev", "one", force=state is RUNNING)
    after = STOPPED if state is STOPPED else SUSPENDED
    assert made.inspect("dev").state is after
    assert not alive(world)
    assert all(holds(disk, 1) for disk in disks(made))
    await made.restore_snapshot("dev", "two")
    assert all(holds(disk, 2) for disk in disks(made))
    assert leftovers(files(made)) == (set() if state is STOPPED else {"suspend"})
    await made.start("dev")
    assert len(world.restored) == (state is not STOPPED)
    # What the guest goes on from is used up; the snapshot is there still.
    await made.restore_snapshot("dev", "two", force=True)
    await made.start("dev")
    await made.remove_snapshot("dev", "one")
    assert list(await made.snapshots("dev")) == [two]
    assert [tags(disk) for disk in disks(made)] == [["arcbox-two"], ["arcbox-two"]]
    await made.stop("dev")
    await made.remove_snapshot("dev", "two")
    assert [tags(disk) for disk in disks(made)] == [[], []]
    assert not snapshot_files(made)


async def test_a_snapshot_outlives_other_memories(made: Machines, world: World) -> None:
    await bring(made, RUNNING)
    await made.create_snapshot("dev", "live")
    await made.stop("dev")
    await made.create_snapshot("dev", "cold")
    await made.restore_snapshot("dev", "live")
    assert made.inspect("dev").state is SUSPENDED
    # Of a machine that was stopped there is no memory, and this one's goes.
    await made.restore_snapshot("dev", "cold")
    assert made.inspect("dev").state is STOPPED
    assert not leftovers(files(made))
    await made.restore_snapshot("dev", "live")
    await made.resume("dev")
    assert len(world.restored) == 1


async def test_the_record_follows_the_memory(made: Machines, world: World) -> None:
    """A memory of a machine without a balloon needs a process without one, now and later."""
    await bring(made, RUNNING)
    machine = made.inspect("dev")
    await made.context.registry.change(machine.id, boot=Boot.TEMPLATE, boot_reason="from template")
    world.launched["dev"] = replace(world.launched["dev"], balloon=False)
    await made.create_snapshot("dev", "clone")
    await made.stop("dev")
    await made.start("dev")
    assert made.inspect("dev").boot is Boot.COLD
    await made.restore_snapshot("dev", "clone", force=True)
    await made.resume("dev")
    assert not world.configs[-1].balloon
    assert made.inspect("dev").boot is Boot.TEMPLATE
    await made.suspend("dev")
    await made.resume("dev")
    assert not world.configs[-1].balloon


async def test_names(made: Machines) -> None:
    for name in ("", "1"):
        await made.create_snapshot("dev", name)
    named, number = [each.name for each in await made.snapshots("dev")]
    assert number == "1"
    made.context.now_ns = lambda: 1_700_000_000 * 10**9
    assert (await made.create_snapshot("dev")).name == "20231114-221320"
    assert (await made.create_snapshot("dev")).name == "20231114-221320-1"
    with pytest.raises(errors.SnapshotExistsError, match="exists"):
        await made.create_snapshot("dev", "1")
    for name in ("../one", "One", "-1", "a" * 64, "one.part"):
        for call in (made.create_snapshot, made.restore_snapshot, made.remove_snapshot):
            with pytest.raises(errors.InvalidArgumentError, match="snapshot's name"):
                await call("dev", name)
    for call in (made.restore_snapshot, made.remove_snapshot):
        with pytest.raises(errors.SnapshotNotFoundError, match="no snapshot") as caught:
            await call("dev", "other")
        assert "arcbox snapshot ls dev" in caught.value.hint
    # By its name, not by the number that qemu-img gave another.
    write(disks(made)[0], 2)
    await made.restore_snapshot("dev", named)
    assert holds(disks(made)[0], 1)


async def test_there_is_a_most(made: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MAX_SNAPSHOTS", 2)
    for name in ("one", "two"):
        await made.create_snapshot("dev", name)
    with pytest.raises(errors.NoRoomError, match="2 snapshots") as caught:
        await made.create_snapshot("dev", "three")
    assert "rm dev one" in caught.value.hint


async def test_a_first_start_keeps_the_snapshots(machines: Machines) -> None:
    await machines.prepare_template(NewMachine("dev"))
    await machines.create(NewMachine("dev"))
    await machines.create_snapshot("dev", "fresh")
    await machines.start("dev")
    assert machines.inspect("dev").boot is Boot.COLD
    assert tags(files(machines).disk) == ["arcbox-fresh"]


FAILURES: dict[str, Callable[[World], None]] = {
    "save": lambda world: setattr(world, "saves_fail", errors.NoRoomError("the disk is full")),
    "go on": lambda world: setattr(world, "resumes_fail", 1),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_snapshot_that_fails_leaves_nothing(
    made: Machines, world: World, failure: str
) -> None:
    await bring(made, RUNNING)
    FAILURES[failure](world)
    with pytest.raises((errors.NoRoomError, errors.HypervisorError)):
        await made.create_snapshot("dev", "one")
    assert made.inspect("dev").state is RUNNING
    assert [tags(disk) for disk in disks(made)] == [[], []]
    assert not snapshot_files(made)
    await until(lambda: halted(alive(world)[0]) == (failure == "go on"))


async def test_a_disk_that_cannot_take_a_snapshot(made: Machines) -> None:
    root, data = disks(made)
    data.write_bytes(b"")
    with pytest.raises(errors.ArcboxError, match="qemu-img"):
        await made.create_snapshot("dev", "one")
    assert tags(root) == []
    assert not snapshot_files(made)


async def test_a_cancelled_snapshot_is_undone(made: Machines, world: World) -> None:
    await bring(made, RUNNING)
    world.save_gate = asyncio.Event()
    task = asyncio.ensure_future(made.create_snapshot("dev", "one"))
    await world.save_begun.wait()
    await until(lambda: halted(alive(world)[0]))
    with pytest.raises(errors.MachineBusyError, match="snapshot"):
        await made.suspend("dev")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not halted(alive(world)[0]))
    assert [tags(disk) for disk in disks(made)] == [[], []]
    assert not snapshot_files(made)
    world.save_gate = None
    await made.create_snapshot("dev", "one")


async def test_a_forced_stop_ends_a_snapshot(made: Machines, world: World) -> None:
    await bring(made, RUNNING)
    world.save_gate = asyncio.Event()
    task = asyncio.ensure_future(made.create_snapshot("dev", "one"))
    await world.save_begun.wait()
    await made.stop("dev", force=True)
    with pytest.raises(errors.MachineStateError, match="forced stop"):
        await task
    assert made.inspect("dev").state is STOPPED
    assert not snapshot_files(made)


async def test_what_is_not_whole_is_not_restored(made: Machines, world: World) -> None:
    await bring(made, RUNNING)
    await made.create_snapshot("dev", "one")
    state = files(made).snapshots / "one" / "memory" / "state"
    state.write_bytes(b"")
    with pytest.raises(errors.CorruptError, match="state"):
        await made.restore_snapshot("dev", "one", force=True)
    state.write_bytes(STATE)
    root, data = disks(made)
    subprocess.run(["qemu-img", "snapshot", "-d", "arcbox-one", str(data)], check=True)
    with pytest.raises(errors.CorruptError, match=r"data\.qcow2"):
        await made.restore_snapshot("dev", "one", force=True)
    data.unlink()
    with pytest.raises(errors.CorruptError, match=r"data\.qcow2"):
        await made.restore_snapshot("dev", "one", force=True)
    assert made.inspect("dev").state is RUNNING
    assert tags(root) == ["arcbox-one"]
    (files(made).snapshots / "one" / "manifest.json").write_text("{}")
    assert not await made.snapshots("dev")


# --- a daemon that was killed -------------------------------------------------------------------


async def _let_go(crash: Crash, task: asyncio.Task[object]) -> None:
    crash.released.set()
    task.cancel()
    with suppress(asyncio.CancelledError, errors.ArcboxError):
        await task


@pytest.mark.parametrize("state", [STOPPED, RUNNING])
@pytest.mark.parametrize("verb", ["create", "remove"])
async def test_a_snapshot_that_was_killed_is_taken_away(
    *,
    made: Machines,
    world: World,
    directory: Path,
    verb: str,
    state: MachineState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await bring(made, state)
    await made.create_snapshot("dev", "kept")
    work: Awaitable[object]
    if verb == "create":
        target, work = "_publish", made.create_snapshot("dev", "one")
    else:
        await made.create_snapshot("dev", "one")
        target, work = "_drop", made.remove_snapshot("dev", "one")
    crash = Crash()
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, target, crash)
        task = asyncio.ensure_future(work)
        await crash.reached.wait()
    assert snapshot_files(made) == {"kept", "one.part"}
    if state is RUNNING:
        # As if it was killed while the machine was halted.
        await world.vms["dev"].pause()
    async with reopened(made.context.paths, world, directory / "after") as machines:
        await until(lambda: snapshot_files(machines) == {"kept"})
        assert machines.inspect("dev").state is state
        assert [tags(disk) for disk in disks(machines)] == [["arcbox-kept"], ["arcbox-kept"]]
        if state is RUNNING:
            await until(lambda: not halted(alive(world)[0]))
    await _let_go(crash, task)


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "disks"])
@pytest.mark.parametrize("point", ["begun", "root", "disks", "recorded"])
async def test_a_restore_that_was_killed_is_finished(
    *,
    made: Machines,
    world: World,
    directory: Path,
    point: str,
    memory: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await bring(made, RUNNING if memory else STOPPED)
    await made.create_snapshot("dev", "one")
    if memory:
        await made.stop("dev")
    for disk in disks(made):
        write(disk, 2)
    if not memory:
        await bring(made, SUSPENDED)  # whose memory goes
    crash = Crash()
    applied = disk_snapshots._snapshot
    count = 0

    async def one_by_one(verb: str, tag: str, disk: Path) -> None:
        nonlocal count
        count += 1
        if count == {"begun": 1, "root": 2}[point]:
            await crash()
        await applied(verb, tag, disk)

    move = made.context.registry.move

    async def recorded(machine_id: str, to: MachineState, **changes: object) -> None:
        if point == "recorded":
            await move(machine_id, to, **changes)  # type: ignore[arg-type]
        await crash()

    with monkeypatch.context() as patch:
        if point in {"begun", "root"}:
            patch.setattr(disk_snapshots, "_snapshot", one_by_one)
        else:
            patch.setattr(made.context.registry, "move", recorded)
        task = asyncio.ensure_future(made.restore_snapshot("dev", "one"))
        await crash.reached.wait()
        async with reopened(made.context.paths, world, directory / "after") as machines:
            assert machines.inspect("dev").state is (SUSPENDED if memory else STOPPED)
            assert leftovers(files(machines)) == ({"suspend"} if memory else set())
            assert all(holds(disk, 1) for disk in disks(machines))
            await machines.start("dev")
            assert len(world.restored) == memory
            await machines.stop("dev", force=True)
        await _let_go(crash, task)


async def test_a_restore_that_fails_is_tried_again(
    *,
    made: Machines,
    world: World,
    paths: Paths,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await made.create_snapshot("dev", "one")
    for disk in disks(made):
        write(disk, 2)

    async def fails(*_: object) -> None:
        raise errors.StoreError("the disk is broken")

    with monkeypatch.context() as patch:
        patch.setattr(disk_snapshots, "apply", fails)
        with pytest.raises(errors.StoreError):
            await made.restore_snapshot("dev", "one")
        machine = made.inspect("dev")
        assert machine.state is MachineState.UNKNOWN
        assert "half restored" in machine.detail
        with pytest.raises(errors.MachineStateError):
            await made.start("dev")
        async with reopened(paths, world, directory / "still") as machines:
            assert machines.inspect("dev").state is MachineState.UNKNOWN
    async with reopened(paths, world, directory / "after") as machines:
        await until(lambda: machines.inspect("dev").state is STOPPED)
        assert all(holds(disk, 1) for disk in disks(machines))
    await made.stop("dev", force=True)
    assert made.inspect("dev").state is STOPPED
    assert not leftovers(files(made))


# --- clones --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [STOPPED, SUSPENDED, RUNNING])
async def test_a_clone_is_another_machine(
    made: Machines, world: World, state: MachineState
) -> None:
    await made.create_snapshot("dev", "one")
    await bring(made, state)
    world.steps.clear()
    clone = await made.clone("dev", "other")
    source = made.inspect("dev")
    assert source.state is state
    assert (clone.state, clone.spec) == (STOPPED, replace(source.spec, name="other"))
    for field in ("id", "mac", "machine_id"):
        assert getattr(clone, field) != getattr(source, field)
    assert clone.image_key == source.image_key
    ours, theirs = files(made), files(made, "other")
    assert ours.ssh_key.read_bytes() != theirs.ssh_key.read_bytes()
    assert ours.ssh_host_key.read_bytes() != theirs.ssh_host_key.read_bytes()
    assert theirs.base_image.samefile(ours.base_image)
    if state is RUNNING:
        assert world.steps == ["pause", "resume"]
        assert [spec.argv for spec in world.specs] == [("sync",)]
    # The copies are whole, without the source's snapshots, and each is its own.
    for disk in disks(made, "other"):
        assert holds(disk, 1)
        assert tags(disk) == []
        write(disk, 9)
    assert all(holds(disk, 1) for disk in disks(made))
    assert not theirs.snapshots.exists()
    assert not theirs.suspended.exists()
    await made.start("other")


async def test_a_clone_of_a_machine_that_rests_on_a_template(
    machines: Machines, world: World
) -> None:
    template = (await machines.prepare_template(NewMachine("dev"))).template
    await machines.create(NewMachine("dev"))
    await machines.start("dev")
    await machines.clone("dev", "other")
    assert machines.context.templates.links(template) == 2
    with pytest.raises(errors.PreconditionError, match="2 machines"):
        await machines.remove_template(template.key)
    disk = files(machines, "other").disk
    subprocess.run(["qemu-img", "check", "-q", str(disk)], check=True)
    # Its disk has content, so it is never started from a template itself.
    write(disk, 9)
    await machines.start("other")
    assert machines.inspect("other").boot is Boot.COLD
    assert holds(disk, 9)


async def test_a_clone_that_cannot_be(made: Machines) -> None:
    with pytest.raises(errors.MachineExistsError):
        await made.clone("dev", "dev")
    with pytest.raises(errors.InvalidArgumentError):
        await made.clone("dev", "Other")
    with pytest.raises(errors.MachineNotFoundError):
        await made.clone("nope", "other")


async def test_a_clone_is_made_though_the_agent_is_silent(made: Machines, world: World) -> None:
    await bring(made, RUNNING)
    world.agent_answers = False
    await made.clone("dev", "other")


@pytest.mark.parametrize("how", ["cancelled", "failed", "killed", "stopped"])
async def test_a_clone_that_does_not_come_to_be_leaves_nothing(
    *,
    made: Machines,
    world: World,
    directory: Path,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await bring(made, RUNNING)
    crash = Crash()

    async def copy(*_: object) -> None:
        await crash()
        raise errors.NoRoomError("there is no room")

    with monkeypatch.context() as patch:
        patch.setattr("arcboxd.machines.clone._copy", copy)
        task = asyncio.ensure_future(made.clone("dev", "other"))
        await crash.reached.wait()
        await until(lambda: halted(alive(world)[0]))
        with pytest.raises(errors.MachineBusyError):
            await made.start("other")
        if how == "killed":
            async with reopened(made.context.paths, world, directory / "after") as machines:
                assert [m.spec.name for m in machines.list(all_states=True)] == ["dev"]
                assert len(list(machines.context.paths.machines.iterdir())) == 1
                assert len(list(machines.context.paths.volumes.iterdir())) == 1
                await until(lambda: not halted(alive(world)[0]))
        elif how == "stopped":
            await made.stop("dev", force=True)
        elif how == "cancelled":
            task.cancel()
        crash.released.set()
        with pytest.raises((asyncio.CancelledError, errors.NoRoomError, errors.MachineStateError)):
            await task
    assert [m.spec.name for m in made.list(all_states=True)] == ["dev"]
    assert len(list(made.context.paths.machines.iterdir())) == 1
    assert len(list(made.context.paths.volumes.iterdir())) == 1
    if how == "stopped":
        assert made.inspect("dev").state is STOPPED
    else:
        await until(lambda: not halted(alive(world)[0]))


async def test_the_calls_as_a_client_sees_them(daemon: Daemon) -> None:
    await daemon.create()
    host = daemon.host
    made = await host.CreateSnapshot(host_pb2.CreateSnapshotRequest(id="dev", name="one"))
    assert (made.name, made.memory, made.saved_bytes) == ("one", False, 0)
    assert made.created_unix_nanos > 10**18
    listed = await host.ListSnapshots(host_pb2.ListSnapshotsRequest(id="dev"))
    assert list(listed.snapshots) == [made]
    await host.RestoreSnapshot(host_pb2.RestoreSnapshotRequest(id="dev", name="one"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await host.CreateSnapshot(host_pb2.CreateSnapshotRequest(id="dev", name="one"))
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    await host.RemoveSnapshot(host_pb2.RemoveSnapshotRequest(id="dev", name="one"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await host.RestoreSnapshot(host_pb2.RestoreSnapshotRequest(id="dev", name="one"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    clone = await host.CloneMachine(host_pb2.CloneMachineRequest(id="dev", name="other"))
    assert await daemon.state(clone.id) == "stopped"
