"""Starts and stops that go wrong, race or are given up: the state in the end is true."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest

from arcboxd import errors
from arcboxd.domain.machine import MachineState, NewMachine
from arcboxd.machines import stop
from arcboxd.machines.service import Machines
from tests.fakes import World


def _alive(world: World) -> list[int]:
    alive = []
    for pid in world.pids:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        alive.append(pid)
    return alive


async def _until(machines: Machines, state: MachineState, ref: str = "dev") -> None:
    async with asyncio.timeout(5):
        while machines.inspect(ref).state is not state:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
async def made(machines: Machines) -> Machines:
    await machines.create(NewMachine("dev"))
    return machines


async def test_qemu_that_ends_at_once_is_told_with_the_consoles_last_words(
    made: Machines, world: World
) -> None:
    world.dies_at_start, world.agent_ready = True, False
    world.console += "\x1b[31mKernel panic\x1b[0m - not syncing\x07\n"
    with pytest.raises(errors.HypervisorError, match="Kernel panic - not syncing"):
        await made.start("dev")
    machine = made.inspect("dev")
    assert machine.state is MachineState.STOPPED
    assert "Kernel panic" in machine.detail
    assert machine.process is None
    assert not _alive(world)


async def test_a_start_that_takes_too_long_is_ended(made: Machines, world: World) -> None:
    world.agent_ready = False
    with pytest.raises(errors.TooLateError, match="Linux version"):
        await made.start("dev")
    assert made.inspect("dev").state is MachineState.STOPPED
    assert not _alive(world)
    world.agent_ready = True
    await made.start("dev")
    assert made.inspect("dev").detail == ""


async def test_a_cancelled_start_is_undone(made: Machines, world: World) -> None:
    world.agent_ready = False
    task = asyncio.ensure_future(made.start("dev"))
    await _until(made, MachineState.STARTING)
    while not world.pids:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # impatient, but the way back is walked to its end
    with pytest.raises(asyncio.CancelledError):
        await task
    assert made.inspect("dev").state is MachineState.STOPPED
    assert not _alive(world)


async def test_a_forced_stop_ends_a_start(made: Machines, world: World) -> None:
    world.agent_ready = False
    task = asyncio.ensure_future(made.start("dev"))
    await _until(made, MachineState.STARTING)
    with pytest.raises(errors.MachineBusyError, match="start"):
        await made.stop("dev")
    await made.stop("dev", force=True)
    with pytest.raises(errors.MachineStateError, match="forced stop"):
        await task
    assert made.inspect("dev").state is MachineState.STOPPED
    assert not _alive(world)


async def test_a_forced_stop_ends_a_stop(made: Machines, world: World) -> None:
    world.shutdown_ends = world.powerdown_ends = False
    await made.start("dev")
    task = asyncio.ensure_future(made.stop("dev"))
    await _until(made, MachineState.STOPPING)
    await made.stop("dev", force=True)
    await task
    assert made.inspect("dev").state is MachineState.STOPPED


async def test_the_power_button_helps_when_no_agent_does(made: Machines, world: World) -> None:
    await made.start("dev")
    world.agent_answers = False
    async with asyncio.timeout(3):
        await made.stop("dev")
    assert not _alive(world)


async def test_a_guest_that_ignores_everything_is_killed(
    made: Machines, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "_KILL_MARGIN_S", 0.1)
    made.context.settings = replace(made.context.settings, stop_grace_s=0.2)
    world.shutdown_ends = world.powerdown_ends = world.monitor_answers = False
    await made.start("dev")
    async with asyncio.timeout(8):
        await made.stop("dev")
    assert not _alive(world)


async def test_a_cancelled_stop_leaves_the_truth(made: Machines, world: World) -> None:
    world.shutdown_ends = world.powerdown_ends = False
    await made.start("dev")
    task = asyncio.ensure_future(made.stop("dev"))
    await _until(made, MachineState.STOPPING)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert made.inspect("dev").state is MachineState.RUNNING
    await made.stop("dev", force=True)


@pytest.mark.parametrize(
    ("words", "detail"), [("[ 9.1] reboot: Power down\n", ""), ("busy\n", "nobody stopped it")]
)
async def test_a_guest_that_ends_by_itself_is_seen(
    made: Machines, world: World, words: str, detail: str
) -> None:
    world.console += words
    await made.start("dev")
    world.vms["dev"].die()
    await _until(made, MachineState.STOPPED)
    assert detail in made.inspect("dev").detail
    assert bool(made.inspect("dev").detail) == bool(detail)
    await made.start("dev")


async def test_a_taken_port_is_exchanged_and_a_free_one_kept(made: Machines, world: World) -> None:
    await made.start("dev")
    port = made.inspect("dev").ssh_port
    await made.stop("dev")
    await made.start("dev")
    assert made.inspect("dev").ssh_port == port
    await made.stop("dev")
    world.ports_taken = 1
    await made.start("dev")
    assert made.inspect("dev").ssh_port != port
    config = made.context.paths.machine(made.inspect("dev").id).ssh_config.read_text()
    assert f"Port {made.inspect('dev').ssh_port}\n" in config


async def test_remove_by_force_kills(made: Machines, world: World) -> None:
    await made.start("dev")
    await made.remove("dev", force=True)
    assert not made.list(all_states=True)
    assert not _alive(world)
    assert not list(made.context.paths.machines.iterdir())


@pytest.mark.parametrize("volumes", [True, False])
async def test_volumes_outlive_a_machine_unless_named(made: Machines, volumes: bool) -> None:
    disks = made.context.paths.volumes / made.inspect("dev").id
    disks.mkdir(parents=True)
    (disks / "data.qcow2").write_bytes(b"")
    await made.remove("dev", volumes=volumes)
    assert disks.exists() is not volumes


async def test_fifty_creates_at_once(machines: Machines) -> None:
    names = [f"m{number}" for number in range(50)]
    made = await asyncio.gather(*(machines.create(NewMachine(name)) for name in names))
    assert len({m.id for m in made}) == len({m.mac for m in made}) == 50
    assert {m.spec.name for m in machines.list(all_states=True)} == set(names)
    assert all(m.state is MachineState.STOPPED for m in machines.list(all_states=True))


async def test_one_of_many_creates_of_a_name_wins(machines: Machines) -> None:
    results = await asyncio.gather(
        *(machines.create(NewMachine("dev")) for _ in range(10)), return_exceptions=True
    )
    assert sum(isinstance(r, errors.MachineExistsError) for r in results) == 9
    assert len(list(machines.context.paths.machines.iterdir())) == 1


async def test_races_end_in_one_state(made: Machines, world: World) -> None:
    for _ in range(5):
        results = await asyncio.gather(
            *(made.start("dev") for _ in range(3)),
            *(made.stop("dev") for _ in range(3)),
            made.stop("dev", force=True),
            return_exceptions=True,
        )
        allowed = (errors.MachineBusyError, errors.MachineStateError, type(None))
        assert all(isinstance(r, allowed) for r in results), results
        state = made.inspect("dev").state
        assert state in {MachineState.RUNNING, MachineState.STOPPED}
        assert len(_alive(world)) == (state is MachineState.RUNNING)


async def test_a_create_in_progress_is_busy(machines: Machines, world: World) -> None:
    world.image_gate = asyncio.Event()
    task = asyncio.ensure_future(machines.create(NewMachine("dev")))
    await world.image_wanted.wait()
    assert machines.inspect("dev").state is MachineState.CREATING
    for call in (machines.start("dev"), machines.stop("dev"), machines.remove("dev", force=True)):
        with pytest.raises(errors.MachineBusyError, match="create"):
            await call
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not machines.list(all_states=True)


async def test_a_killed_process_is_reaped_with_its_watcher(made: Machines, world: World) -> None:
    await made.start("dev")
    (pid,) = world.pids
    os.kill(pid, signal.SIGKILL)
    await _until(made, MachineState.STOPPED)
    assert not made.context.running
