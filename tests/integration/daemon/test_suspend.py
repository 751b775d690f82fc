"""Suspend and resume: whatever fails or is killed, no memory is lost, and none is used twice."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from arcboxd import errors
from arcboxd.domain.machine import Boot, Machine, MachineState, NewMachine
from arcboxd.machines.service import Machines
from arcboxd.paths import MachinePaths, Paths, SavedPaths
from arcboxd.store.database import MachineDatabase
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from arcboxd.wire.pb.arcbox.v1 import machine_pb2
from arcboxd.wire.status import from_rpc_error
from tests.fakes import STATE, FakeAssets, FakeHypervisor, FakeVm, World
from tests.integration.daemon.conftest import Daemon
from tests.integration.daemon.test_recovery import Crash, _reopen, reopened

RUNNING, STOPPED, SUSPENDED = MachineState.RUNNING, MachineState.STOPPED, MachineState.SUSPENDED
STARTING, SUSPENDING = MachineState.STARTING, MachineState.SUSPENDING


def alive(world: World) -> list[int]:
    """Give the processes that run or are halted."""
    found = []
    for pid in world.pids:
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
            found.append(pid)
    return found


def kill(pid: int) -> None:
    """Kill a process, and return once it is gone; whoever holds it may reap it."""
    os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def halted(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def files(machines: Machines, ref: str = "dev") -> MachinePaths:
    return machines.context.paths.machine(machines.inspect(ref).id)


def leftovers(paths: MachinePaths) -> set[str]:
    """Name what a crash may leave."""
    names = {"suspend", "suspend.new", "suspend.used", "restoring.json"}
    return names & {path.name for path in paths.directory.iterdir()}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
async def running(machines: Machines) -> Machines:
    await machines.create(NewMachine("dev"))
    disks = machines.context.paths.volumes / machines.inspect("dev").id
    disks.mkdir(parents=True)
    for name in ("a-b.qcow2", "a.qcow2"):
        (disks / name).touch()
    await machines.start("dev")
    return machines


async def test_a_suspended_machine_goes_on_as_it_was(running: Machines, world: World) -> None:
    first, paths = world.configs[-1], files(running)
    assert await running.suspend("dev") == len(STATE)
    machine = running.inspect("dev")
    assert (machine.state, machine.process, machine.detail) == (SUSPENDED, None, "")
    assert not alive(world)
    assert not running.context.running
    assert leftovers(paths) == {"suspend"}
    assert await running.suspend("dev") == len(STATE)
    assert machine in running.list(all_states=False)

    world.board = "fake-2"  # of a newer QEMU, for machines that boot
    await running.resume("dev")
    await running.resume("dev")
    second = world.configs[-1]
    assert [state.path for state in world.restored] == [paths.suspended / "state"]
    # All that a process is made of is the same; only its boot files have other names.
    assert replace(second, assets=first.assets, machine_type="") == first
    assert (second.machine_type, world.restored[0].machine_type) == ("fake-1", "fake-1")
    assert second.assets.kernel_version == first.assets.kernel_version
    assert second.assets.kernel.exists()
    machine = running.inspect("dev")
    assert (machine.state, machine.boot) == (RUNNING, Boot.COLD)
    assert (await running.ping("dev")).version
    (pid,) = alive(world)
    await until(lambda: not halted(pid))
    assert not leftovers(paths)
    assert world.resets_allowed == 2


async def test_again_and_again_and_then_cold(running: Machines, world: World) -> None:
    for _ in range(3):
        await running.suspend("dev")
        await running.start("dev")
    assert len(world.restored) == 3
    assert all(state.machine_type == "fake-1" for state in world.restored)
    await running.stop("dev")
    await running.start("dev")
    assert len(world.restored) == 3
    assert world.configs[-1] == world.configs[0]
    assert running.inspect("dev").boot is Boot.COLD


async def test_the_device_set_is_that_of_the_process(running: Machines, world: World) -> None:
    """As when a daemon was killed before it could record how the machine was started."""
    world.launched["dev"] = replace(world.launched["dev"], balloon=False)
    await running.suspend("dev")
    await running.resume("dev")
    assert not world.configs[-1].balloon


async def test_the_boot_files_stay_though_the_cache_goes(
    running: Machines, world: World, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running.stop("dev")
    cache = directory / "assets"
    cache.mkdir()
    for name in ("kernel", "initramfs", "modules", "agent"):
        (cache / name).write_text(f"the {name}")
    ensure = FakeAssets(world).ensure

    async def real(*args: object) -> object:
        given = await ensure("", lambda *_: None)
        return replace(
            given,
            kernel=cache / "kernel",
            initramfs=cache / "initramfs",
            modules_disk=cache / "modules",
            agent_disk=cache / "agent",
        )

    monkeypatch.setattr(running.context.assets, "ensure", real)
    await running.start("dev")
    await running.suspend("dev")
    shutil.rmtree(cache)
    for _ in range(2):
        await running.resume("dev")
        vm = running.context.running[running.inspect("dev").id].vm
        hardware = await vm.hardware()
        assert hardware.kernel.read_text() == "the kernel"
        assert hardware.initramfs.read_text() == "the initramfs"
        assert hardware.modules_disk.read_text() == "the modules"
        assert hardware.agent_disk.read_text() == "the agent"
        await running.suspend("dev")
    assert SavedPaths(files(running).suspended).kernel.stat().st_nlink > 1


FAILURES = [
    errors.NoRoomError("the disk is full"),
    errors.HypervisorError("QEMU refused"),
    errors.TooLateError("too slow"),
    OSError(5, "I/O error"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda e: type(e).__name__)
async def test_a_machine_that_cannot_be_saved_runs_on(
    running: Machines, world: World, error: Exception
) -> None:
    world.saves_fail, sessions = error, len(world.identities)
    with pytest.raises(type(error)):
        await running.suspend("dev")
    machine = running.inspect("dev")
    assert machine.state is RUNNING
    assert str(error) in machine.detail
    (pid,) = alive(world)
    await until(lambda: not halted(pid))
    assert not leftovers(files(running))
    assert len(world.identities) == sessions + 1
    assert (await running.ping("dev")).version
    world.saves_fail = None
    await running.suspend("dev")
    assert running.inspect("dev").detail == ""


async def test_a_full_disk_is_seen_before_it_is_full(
    running: Machines, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 4096})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(errors.NoRoomError, match="has room for"):
        await running.suspend("dev")
    assert running.inspect("dev").state is RUNNING
    assert "save" not in world.steps


async def test_a_cancelled_suspend_is_undone(running: Machines, world: World) -> None:
    world.save_gate = asyncio.Event()
    task = asyncio.ensure_future(running.suspend("dev"))
    await world.save_begun.wait()
    assert running.inspect("dev").state is SUSPENDING
    with pytest.raises(errors.MachineStateError, match="suspending"):
        await running.ping("dev")
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert running.inspect("dev").state is RUNNING
    assert world.steps == ["close", "pause", "save", "resume"]
    assert not leftovers(files(running))
    assert (await running.ping("dev")).version


async def test_a_cancellation_that_comes_too_late_is_told(
    running: Machines, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill, crash = FakeVm.kill, Crash()

    async def slowly(self: FakeVm) -> None:
        await crash()
        await kill(self)

    monkeypatch.setattr(FakeVm, "kill", slowly)
    task = asyncio.ensure_future(running.suspend("dev"))
    await crash.reached.wait()
    task.cancel()
    crash.released.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert running.inspect("dev").state is SUSPENDED
    await running.resume("dev")


async def test_a_forced_stop_ends_a_suspend(running: Machines, world: World) -> None:
    world.save_gate = asyncio.Event()
    task = asyncio.ensure_future(running.suspend("dev"))
    await world.save_begun.wait()
    with pytest.raises(errors.MachineBusyError, match="suspend"):
        await running.stop("dev")
    await running.stop("dev", force=True)
    with pytest.raises(errors.MachineStateError, match="forced stop"):
        await task
    assert running.inspect("dev").state is STOPPED
    assert not alive(world)
    assert not leftovers(files(running))


async def test_qemu_that_dies_while_it_is_saved(running: Machines, world: World) -> None:
    world.save_gate, world.saves_fail = asyncio.Event(), errors.HypervisorError("no answer")
    task = asyncio.ensure_future(running.suspend("dev"))
    await world.save_begun.wait()
    world.vms["dev"].die()
    world.resumes_fail = 1
    world.save_gate.set()
    with pytest.raises(errors.HypervisorError):
        await task
    await until(lambda: running.inspect("dev").state is STOPPED)
    assert "nobody stopped it" in running.inspect("dev").detail


async def test_what_cannot_be_suspended_or_resumed(machines: Machines) -> None:
    await machines.create(NewMachine("dev"))
    with pytest.raises(errors.MachineStateError, match="stopped"):
        await machines.suspend("dev")
    with pytest.raises(errors.MachineStateError, match="stopped") as caught:
        await machines.resume("dev")
    assert "arcbox start dev" in caught.value.hint


async def _spoil(paths: MachinePaths, damage: str) -> None:
    source = SavedPaths(paths.suspended)
    if damage == "short":
        source.state.write_bytes(STATE[:-1])
    elif damage == "other":
        source.state.write_bytes(STATE.swapcase())
    elif damage == "no manifest":
        source.manifest.unlink()
    elif damage == "no agent":
        source.agent_disk.unlink()


@pytest.mark.parametrize("damage", ["short", "other", "no manifest", "no agent"])
async def test_a_memory_that_cannot_be_loaded_stays_until_it_is_given_up(
    running: Machines, world: World, damage: str
) -> None:
    await running.suspend("dev")
    await _spoil(files(running), damage)
    kind = errors.HypervisorError if damage == "other" else errors.CorruptError
    for call in (running.resume, running.start, running.stop):
        with pytest.raises(kind) as caught:
            await call("dev")
        assert "arcbox stop --force dev" in caught.value.hint
        machine = running.inspect("dev")
        assert machine.state is SUSPENDED
        assert caught.value.message in machine.detail
    assert not alive(world)
    await running.stop("dev", force=True)
    assert running.inspect("dev").state is STOPPED
    assert not leftovers(files(running))
    await running.start("dev")
    assert running.inspect("dev").detail == ""


async def test_another_accelerator_is_told_at_once(running: Machines, world: World) -> None:
    await running.suspend("dev")
    hypervisor = running.context.hypervisor
    assert isinstance(hypervisor, FakeHypervisor)
    hypervisor.accelerator = replace(hypervisor.accelerator, name="kvm")
    with pytest.raises(errors.PreconditionError, match="suspended under tcg"):
        await running.resume("dev")
    assert running.inspect("dev").state is SUSPENDED


async def test_a_taken_port_is_exchanged(running: Machines, world: World) -> None:
    port = running.inspect("dev").ssh_port
    await running.suspend("dev")
    world.ports_taken = 1
    await running.resume("dev")
    assert running.inspect("dev").ssh_port != port
    await running.suspend("dev")
    world.ports_taken = 99
    with pytest.raises(errors.NoRoomError):
        await running.resume("dev")
    assert running.inspect("dev").state is SUSPENDED


async def test_a_resumed_agent_that_does_not_answer(running: Machines, world: World) -> None:
    await running.suspend("dev")
    world.agent_ready = False
    with pytest.raises(errors.TooLateError):
        await running.resume("dev")
    machine = running.inspect("dev")
    assert machine.state is STOPPED
    assert "did not answer" in machine.detail
    assert not alive(world)
    # The guest has run on: this memory must never come back.
    assert not leftovers(files(running))


async def test_a_resume_is_cancelled_before_the_guest_goes_on(
    running: Machines, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running.suspend("dev")
    crash, change = Crash(), running.context.registry.change

    async def slowly(*args: object, **kwargs: object) -> object:
        await crash()
        return await change(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(running.context.registry, "change", slowly)
    task = asyncio.ensure_future(running.resume("dev"))
    await crash.reached.wait()
    await until(lambda: halted(alive(world)[0]))
    task.cancel()
    crash.released.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    assert running.inspect("dev").state is SUSPENDED
    assert "cancelled" in running.inspect("dev").detail
    assert not alive(world)
    await running.resume("dev")


async def test_a_resume_is_cancelled_after_the_guest_went_on(
    running: Machines, world: World
) -> None:
    await running.suspend("dev")
    world.agent_ready = False
    task = asyncio.ensure_future(running.resume("dev"))
    await until(lambda: world.steps[-1] == "resume")
    task.cancel()
    await asyncio.sleep(0.05)
    world.agent_ready = True
    with pytest.raises(asyncio.CancelledError):
        await task
    assert running.inspect("dev").state is RUNNING
    assert (await running.ping("dev")).version


async def test_a_forced_stop_ends_a_resume(running: Machines, world: World) -> None:
    await running.suspend("dev")
    world.agent_ready = False
    task = asyncio.ensure_future(running.resume("dev"))
    await until(lambda: world.steps[-1] == "resume")
    await running.stop("dev", force=True)
    with pytest.raises(errors.HypervisorError, match="ended before"):
        await task
    assert running.inspect("dev").state is STOPPED
    assert not alive(world)


async def test_stop_lets_the_programs_save_their_work(running: Machines, world: World) -> None:
    await running.suspend("dev")
    await running.stop("dev")
    assert running.inspect("dev").state is STOPPED
    assert len(world.restored) == 1
    assert not alive(world)
    assert not leftovers(files(running))


async def test_remove_needs_force_and_leaves_nothing(running: Machines) -> None:
    await running.suspend("dev")
    with pytest.raises(errors.MachineStateError, match="suspended") as caught:
        await running.remove("dev")
    assert "--force" in caught.value.hint
    await running.remove("dev", force=True, volumes=True)
    assert not list(running.context.paths.machines.iterdir())


async def test_the_calls_as_a_client_sees_them(daemon: Daemon, world: World) -> None:
    await daemon.create()
    await daemon.machine.Start(machine_pb2.StartMachineRequest(id="dev"))
    world.saves_fail = errors.NoRoomError("the disk is full")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await daemon.host.Suspend(host_pb2.SuspendRequest(id="dev"))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    world.saves_fail = None
    watch = daemon.host.Watch(host_pb2.WatchRequest(subject="dev"))
    await watch.initial_metadata()
    answer = await daemon.host.Suspend(host_pb2.SuspendRequest(id="dev"))
    assert answer.saved_bytes == len(STATE)
    events = []
    async for event in watch:
        events.append(event.state.state or event.progress.step)
        if event.state.state == "suspended":
            break
    assert events == ["suspending", "saving the memory", "saving the memory", "suspended"]
    (listed,) = (await daemon.machine.List(machine_pb2.ListMachinesRequest())).machines
    assert (listed.state, listed.ip_address) == ("suspended", "")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await daemon.machine.Ping(machine_pb2.MachineAgentRequest(id="dev"))
    assert "arcbox resume dev" in from_rpc_error(caught.value).hint
    await daemon.host.Resume(host_pb2.ResumeRequest(id="dev"))
    assert await daemon.state() == "running"


# --- a daemon that was killed -------------------------------------------------------------------

KEPT = {"-": None, "new": "suspend.new", "saved": "suspend", "used": "suspend.used"}
WINDOWS: list[tuple[MachineState, bool, str, MachineState]] = [
    (SUSPENDING, True, "-", RUNNING),
    (SUSPENDING, True, "new", RUNNING),
    (SUSPENDING, True, "saved", RUNNING),
    (SUSPENDING, False, "-", STOPPED),
    (SUSPENDING, False, "new", STOPPED),
    (SUSPENDING, False, "saved", SUSPENDED),
    (STARTING, True, "saved", SUSPENDED),
    (STARTING, True, "used", RUNNING),
    (STARTING, False, "saved", SUSPENDED),
    (STARTING, False, "used", STOPPED),
    (RUNNING, True, "-", RUNNING),
    (RUNNING, True, "used", RUNNING),
    (RUNNING, False, "used", STOPPED),
    (RUNNING, False, "saved", STOPPED),
    (SUSPENDED, False, "saved", SUSPENDED),
    (SUSPENDED, False, "-", STOPPED),
    (SUSPENDED, False, "used", STOPPED),
    (STOPPED, False, "saved", STOPPED),
    (MachineState.UNKNOWN, True, "saved", SUSPENDED),
    (MachineState.UNKNOWN, True, "-", RUNNING),
    (MachineState.UNKNOWN, False, "saved", SUSPENDED),
]


@pytest.mark.parametrize(("state", "lives", "kept", "after"), WINDOWS)
async def test_every_window(
    *, paths: Paths, world: World, state: MachineState, lives: bool, kept: str, after: MachineState
) -> None:
    async with AsyncExitStack() as stack:
        machines = await _reopen(paths, world, stack)
        await machines.create(NewMachine("dev"))
        await machines.start("dev")
        own = files(machines)
        await machines.suspend("dev")
        if (name := KEPT[kept]) is not None:
            shutil.copytree(own.suspended, own.directory / "copy", symlinks=True)
        await machines.resume("dev")
        if name is not None:
            (own.directory / "copy").rename(own.directory / name)
        await world.vms["dev"].pause()
    (pid,) = alive(world)
    if not lives:
        os.kill(pid, 9)
        os.waitpid(pid, 0)  # noqa: ASYNC222
    await _record(paths, state, process=state not in {SUSPENDED, STOPPED})
    restored = len(world.restored)
    async with AsyncExitStack() as stack:
        machines = await _reopen(paths, world, stack)
        await until(lambda: machines.inspect("dev").state is after)
        await machines.context.locks.settled(machines.inspect("dev").id)
        machine = machines.inspect("dev")
        assert leftovers(own) == ({"suspend"} if after is SUSPENDED else set())
        assert len(alive(world)) == (after is RUNNING)
        if after is RUNNING:
            await until(lambda: not halted(pid))
            assert (await machines.ping("dev")).version
        elif after is SUSPENDED:
            assert machine.process is None
            await machines.resume("dev")
            assert len(world.restored) == restored + 1
        else:
            assert bool(machine.detail) == (state is not STOPPED)
            await machines.start("dev")
            assert len(world.restored) == restored
        await machines.stop("dev", force=True)


async def _record(paths: Paths, state: MachineState, *, process: bool) -> Machine:
    database = await MachineDatabase.open(paths)
    (machine,) = await database.load()
    machine = replace(machine, state=state, process=machine.process if process else None)
    await database.put(machine)
    await database.close()
    return machine


@pytest.mark.parametrize("lives", [True, False], ids=["lives", "gone"])
@pytest.mark.parametrize(
    ("point", "after"),
    [
        ("pause", STOPPED),
        ("save", STOPPED),
        ("kill", SUSPENDED),
        ("detach", SUSPENDED),
    ],
)
async def test_a_suspend_that_was_killed(
    *,
    running: Machines,
    world: World,
    directory: Path,
    point: str,
    after: MachineState,
    lives: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crash = Crash()
    with monkeypatch.context() as patch:
        patch.setattr(FakeVm, point, crash)
        task = asyncio.ensure_future(running.suspend("dev"))
        await crash.reached.wait()
    (pid,) = world.pids
    if point == "detach":
        lives = False  # by then it was killed
    elif not lives:
        kill(pid)
    async with reopened(running.context.paths, world, directory / "after") as machines:
        assert machines.inspect("dev").state is (RUNNING if lives else after)
        kept = not lives and after is SUSPENDED
        assert leftovers(files(machines)) == ({"suspend"} if kept else set())
        if lives:
            await until(lambda: not halted(pid))
        await machines.start("dev")
    crash.released.set()
    task.cancel()
    with suppress(asyncio.CancelledError, errors.ArcboxError):
        await task


@pytest.mark.parametrize("lives", [True, False], ids=["lives", "gone"])
@pytest.mark.parametrize("point", ["recorded", "resume", "allow_reset"])
async def test_a_resume_that_was_killed(
    *,
    running: Machines,
    world: World,
    directory: Path,
    point: str,
    lives: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await running.suspend("dev")
    crash = Crash()
    with monkeypatch.context() as patch:
        if point == "recorded":
            patch.setattr("arcboxd.machines.resume._run", crash)
        else:
            patch.setattr(FakeVm, point, crash)
        task = asyncio.ensure_future(running.resume("dev"))
        await crash.reached.wait()
    (pid,) = alive(world)
    if not lives:
        kill(pid)
    async with reopened(running.context.paths, world, directory / "after") as machines:
        if point == "recorded":
            # The guest has not gone on, so nothing is lost, and the process is ended.
            assert machines.inspect("dev").state is SUSPENDED
            assert leftovers(files(machines)) == {"suspend"}
        else:
            assert machines.inspect("dev").state is (RUNNING if lives else STOPPED)
            assert not leftovers(files(machines))
            await until(lambda: not lives or not halted(pid))
        await machines.start("dev")
        assert (await machines.ping("dev")).version
    crash.released.set()
    task.cancel()
    with suppress(asyncio.CancelledError, errors.ArcboxError):
        await task


async def test_a_daemon_that_ends_does_not_end_a_resume(paths: Paths, world: World) -> None:
    async with AsyncExitStack() as stack:
        machines = await _reopen(paths, world, stack)
        await machines.create(NewMachine("dev"))
        await machines.start("dev")
        await machines.suspend("dev")
        world.agent_ready = False
        task = asyncio.ensure_future(machines.resume("dev"))
        await until(lambda: world.steps[-1] == "resume")
        # As the end of asyncio.run does it: every task is cancelled.
        for each in asyncio.all_tasks():
            if each is not asyncio.current_task() and "_run" in repr(each.get_coro()):
                each.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert len(alive(world)) == 1
    world.agent_ready = True
    async with AsyncExitStack() as stack:
        machines = await _reopen(paths, world, stack)
        assert machines.inspect("dev").state is RUNNING
