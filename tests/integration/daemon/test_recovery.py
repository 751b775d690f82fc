"""What a daemon finds that follows one which was killed: it loses nothing, and harms nothing."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from arcboxd import errors
from arcboxd.daemon.main import open_machines
from arcboxd.domain.machine import MachineState, NewMachine
from arcboxd.machines import adopt, disks, remove, ssh
from arcboxd.machines.leftover import listener
from arcboxd.machines.service import Machines
from arcboxd.paths import Paths
from arcboxd.store.database import MachineDatabase
from arcboxd.wire.pb.arcbox.v1 import machine_pb2
from tests.fakes import World, parts
from tests.integration.daemon.conftest import SETTINGS, Daemon, start_daemon


class Crash:
    """Blocks the daemon for ever at a point, where its state is copied as a kill would leave it."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.released = asyncio.Event()

    async def __call__(self, *args: object, **kwargs: object) -> None:
        self.reached.set()
        await self.released.wait()


def _settled(machines: Machines) -> bool:
    """Whether every machine was adopted, or found to be none that can be."""
    return not any(
        machines.context.locks.current(machine.id)
        or (machine.state in adopt._ALIVE - {MachineState.UNKNOWN} and machine.id not in running)
        for running in [machines.context.running]
        for machine in machines.list(all_states=True)
    )


async def _reopen(paths: Paths, world: World, stack: AsyncExitStack) -> Machines:
    machines = await open_machines(SETTINGS, paths, parts(world, paths.cache), stack)
    async with asyncio.timeout(5):
        while not _settled(machines):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return machines


def copy_state(home: Path, copy: Path) -> None:
    """Copy a state directory, but not sockets, and not what is linked and never written."""
    shutil.copytree(
        home,
        copy,
        ignore=shutil.ignore_patterns("*.sock"),
        copy_function=lambda a, b: os.link(a, b) if a.endswith("base.img") else shutil.copy2(a, b),
    )


async def _crashed(paths: Paths, task: asyncio.Task[object], crash: Crash, copy: Path) -> Paths:
    """Copy the state directory at the crash, then let the blocked work go."""
    async with asyncio.timeout(5):
        await crash.reached.wait()
    after = Paths(copy, paths.cache)
    copy_state(paths.home, after.home)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return after


@asynccontextmanager
async def reopened(paths: Paths, world: World, copy: Path) -> AsyncIterator[Machines]:
    """Give the use cases on a copy of the state directory, as a kill would leave it now."""
    after = Paths(copy, paths.cache)
    copy_state(paths.home, after.home)
    async with AsyncExitStack() as stack:
        yield await _reopen(after, world, stack)


@pytest.mark.parametrize("point", ["image", "disk", "keys", "stored"])
async def test_a_create_that_was_killed_leaves_nothing(
    machines: Machines,
    world: World,
    directory: Path,
    point: str,
) -> None:
    crash = Crash()
    context = machines.context
    target: object
    target, name = {
        "image": (context.images, "ensure"),
        "disk": (disks, "on_image"),
        "keys": (ssh, "make_keys"),
        "stored": (context.registry, "move"),
    }[point]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, crash)
        task = asyncio.ensure_future(machines.create(NewMachine("dev")))
        after = await _crashed(context.paths, task, crash, directory / "after")
    async with AsyncExitStack() as stack:
        reopened = await _reopen(after, world, stack)
        assert not reopened.list(all_states=True)
        assert not list(after.machines.glob("*"))
        await reopened.create(NewMachine("dev"))


@pytest.mark.parametrize("volumes", [True, False])
@pytest.mark.parametrize("point", ["begun", "deleted"])
async def test_a_remove_that_was_killed_is_completed(
    machines: Machines,
    world: World,
    directory: Path,
    point: str,
    volumes: bool,
) -> None:
    machine = await machines.create(NewMachine("dev"))
    disks = machines.context.paths.volumes / machine.id
    disks.mkdir(parents=True)
    crash = Crash()
    with pytest.MonkeyPatch.context() as patch:
        if point == "begun":
            patch.setattr(remove, "_delete", crash)
        else:
            patch.setattr(machines.context.registry, "erase", crash)
        task = asyncio.ensure_future(machines.remove("dev", volumes=volumes))
        async with asyncio.timeout(5):
            await crash.reached.wait()
        after = Paths(directory / "after", machines.context.paths.cache)
        copy_state(machines.context.paths.home, after.home)
        # A removal goes on though it is cancelled; only the end of the process ends it.
        for pending in asyncio.all_tasks():
            if pending is not asyncio.current_task() and "_remove" in repr(pending.get_coro()):
                pending.cancel()
        with suppress(asyncio.CancelledError):
            await task
    async with AsyncExitStack() as stack:
        reopened = await _reopen(after, world, stack)
        assert not reopened.list(all_states=True)
        assert not list(after.machines.glob("*"))
        assert (after.volumes / machine.id).exists() is not volumes


async def _running(paths: Paths, world: World) -> str:
    """Leave a running machine behind."""
    async with AsyncExitStack() as stack:
        machines = await _reopen(paths, world, stack)
        machine = await machines.create(NewMachine("dev"))
        await machines.start("dev")
    return machine.id


async def test_a_running_machine_is_adopted(paths: Paths, world: World) -> None:
    machine_id = await _running(paths, world)
    (pid,) = world.pids
    async with AsyncExitStack() as stack:
        machines = await _reopen(paths, world, stack)
        machine = machines.inspect("dev")
        assert (machine.id, machine.state) == (machine_id, MachineState.RUNNING)
        assert machine.process is not None
        assert machine.process.pid == pid
        assert (await machines.ping("dev")).version == "fake-1"
        world.vms["dev"].die()
        async with asyncio.timeout(5):
            while machines.inspect("dev").state is not MachineState.STOPPED:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


async def test_a_machine_that_ended_meanwhile_is_stopped(paths: Paths, world: World) -> None:
    await _running(paths, world)
    (pid,) = world.pids
    os.kill(pid, 9)
    os.waitpid(pid, 0)  # noqa: ASYNC222
    async with AsyncExitStack() as stack:
        machines = await _reopen(paths, world, stack)
        machine = machines.inspect("dev")
        assert (machine.state, machine.process) == (MachineState.STOPPED, None)
        assert "no daemon" in machine.detail


async def test_a_reused_pid_is_never_taken_for_the_machine(paths: Paths, world: World) -> None:
    await _running(paths, world)
    database = await MachineDatabase.open(paths)
    (machine,) = await database.load()
    assert machine.process is not None
    other = replace(machine.process, start_ticks=machine.process.start_ticks + 1)
    await database.put(replace(machine, process=other))
    await database.close()
    async with AsyncExitStack() as stack:
        machines = await _reopen(paths, world, stack)
        assert machines.inspect("dev").state is MachineState.STOPPED
    os.kill(machine.process.pid, 0)


async def test_a_machine_that_cannot_be_adopted_is_unknown_and_unharmed(
    paths: Paths, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopt, "_RETRY_S", 0.05)
    await _running(paths, world)
    (pid,) = world.pids
    world.monitor_answers = False
    async with AsyncExitStack() as stack:
        machines = await _reopen(paths, world, stack)
        machine = machines.inspect("dev")
        assert machine.state is MachineState.UNKNOWN
        assert "monitor" in machine.detail
        for call in (machines.start("dev"), machines.stop("dev"), machines.remove("dev")):
            with pytest.raises((errors.MachineStateError, errors.MachineBusyError)):
                await call
        os.kill(pid, 0)
        world.monitor_answers = True
        async with asyncio.timeout(5):
            while machines.inspect("dev").state is not MachineState.RUNNING:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert machines.inspect("dev").detail == ""


@pytest.mark.parametrize("verb", ["stop", "remove"])
async def test_an_unknown_machine_can_be_ended_by_force(
    paths: Paths, world: World, verb: str
) -> None:
    await _running(paths, world)
    (pid,) = world.pids
    world.monitor_answers = False
    async with AsyncExitStack() as stack:
        machines = await _reopen(paths, world, stack)
        if verb == "stop":
            await machines.stop("dev", force=True)
            assert machines.inspect("dev").state is MachineState.STOPPED
        else:
            await machines.remove("dev", force=True)
            assert not machines.list(all_states=True)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("ready", [True, False])
async def test_a_start_that_was_killed_is_finished_or_undone(
    machines: Machines, world: World, directory: Path, ready: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = Crash()
    await machines.create(NewMachine("dev"))
    monkeypatch.setattr(machines.context.connector, "connect", crash)
    task = asyncio.ensure_future(machines.start("dev"))
    async with asyncio.timeout(5):
        await crash.reached.wait()
    after = Paths(directory / "after", machines.context.paths.cache)
    copy_state(machines.context.paths.home, after.home)
    world.agent_ready = ready
    (pid,) = world.pids
    async with AsyncExitStack() as stack:
        reopened = await _reopen(after, world, stack)
        if ready:
            assert reopened.inspect("dev").state is MachineState.RUNNING
            os.kill(pid, 0)
        else:
            assert reopened.inspect("dev").state is MachineState.STOPPED
            assert "did not answer" in reopened.inspect("dev").detail
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


COMING_AND_GOING = """
import os
while True:
    for fd in [os.open("/dev/null", 0) for _ in range(40)]:
        os.close(fd)
"""


async def test_a_listener_is_found_without_a_record(directory: Path) -> None:
    path = directory / "qmp.sock"
    assert not listener(path).connects
    with socket.socket(socket.AF_UNIX) as inherited:
        inherited.bind(str(path))
        inherited.listen()
        high = fcntl.fcntl(inherited, fcntl.F_DUPFD_CLOEXEC, 200)
        try:
            # It has others before that one, which come and go.
            child = subprocess.Popen([sys.executable, "-c", COMING_AND_GOING], pass_fds=(high,))
        finally:
            os.close(high)
    with child:
        for _ in range(20):
            found = listener(path)
            assert found.connects
            assert found.process is not None
            assert found.process.pid == child.pid
        child.kill()
    assert not listener(path).connects


@pytest.mark.parametrize("damage", ["missing", "corrupt"])
async def test_a_lost_database_is_rebuilt(
    paths: Paths, world: World, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    machine_id = await _running(paths, world)
    for sidecar in paths.home.glob("state.db-*"):
        sidecar.unlink()
    if damage == "missing":
        paths.database.unlink()
    else:
        paths.database.write_bytes(b"this is no database" * 1000)
    async with AsyncExitStack() as stack:
        machines = await _reopen(paths, world, stack)
        machine = machines.inspect("dev")
        assert (machine.id, machine.state) == (machine_id, MachineState.RUNNING)
    assert "rebuilt" in caplog.text
    assert len(list(paths.home.glob("state.db.corrupt-*"))) == (damage == "corrupt")


async def test_a_newer_database_is_refused_and_left_alone(paths: Paths, world: World) -> None:
    paths.home.mkdir()
    with sqlite3.connect(paths.database) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = paths.database.read_bytes()
    async with AsyncExitStack() as stack:
        with pytest.raises(errors.StoreError, match="99"):
            await open_machines(SETTINGS, paths, parts(world, paths.cache), stack)
    assert paths.database.read_bytes() == before


async def test_a_second_daemon_names_the_first(daemon: Daemon, world: World) -> None:
    async with AsyncExitStack() as stack:
        with pytest.raises(errors.DaemonRunningError, match=str(os.getpid())):
            await start_daemon(daemon.paths, world, stack)
    assert daemon.paths.socket.exists()


async def test_a_daemon_that_ends_during_a_start_leaves_no_process(
    paths: Paths, world: World
) -> None:
    world.agent_ready = False
    async with AsyncExitStack() as stack:
        daemon = await start_daemon(paths, world, stack)
        await daemon.create()
        call = daemon.machine.Start(machine_pb2.StartMachineRequest(id="dev"))
        await daemon.until("starting")
        while not world.pids:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        daemon.stop.set()
        await daemon.task
        call.cancel()
    (pid,) = world.pids
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    database = await MachineDatabase.open(paths)
    (machine,) = await database.load()
    await database.close()
    assert (machine.state, machine.process) == (MachineState.STOPPED, None)


async def test_machines_outlive_a_daemon(paths: Paths, world: World) -> None:
    async with AsyncExitStack() as stack:
        first = await start_daemon(paths, world, stack)
        await first.create()
        await first.machine.Start(machine_pb2.StartMachineRequest(id="dev"))
    (pid,) = world.pids
    os.kill(pid, 0)
    paths.socket.touch()
    async with AsyncExitStack() as stack:
        second = await start_daemon(paths, world, stack)
        await second.until("running")
        assert (await second.machine.Ping(machine_pb2.MachineAgentRequest(id="dev"))).version


async def test_a_path_too_long_for_sockets_is_refused(directory: Path, world: World) -> None:
    long = Paths(directory / ("x" * 90), directory / "cache")
    async with AsyncExitStack() as stack:
        with pytest.raises(errors.InvalidArgumentError, match="too long") as caught:
            await start_daemon(long, world, stack)
    assert "at most 73 bytes" in caught.value.hint
