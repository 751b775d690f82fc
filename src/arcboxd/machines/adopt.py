"""Take over what an earlier daemon left: machines that run, and work that was interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable

from arcboxd.domain.image import BootAssets
from arcboxd.domain.machine import Machine, MachineState
from arcboxd.errors import ArcboxError, HypervisorError, TooLateError
from arcboxd.hypervisor.base import Vm, VmConfig
from arcboxd.machines import remove, saved, shares, snapshot, ssh
from arcboxd.machines.context import Context, Running
from arcboxd.machines.create import discard
from arcboxd.machines.launch import identity
from arcboxd.machines.leftover import listener
from arcboxd.machines.locks import ADOPT, Operation
from arcboxd.machines.start import finish, watch
from arcboxd.machines.template import fresh

_log = logging.getLogger(__name__)

_AT_ONCE = 8
_RETRY_S = 30.0
_AGENT_S = 2.0
"""How long an adopted machine's agent is waited for, under kvm, before others may use it."""
_ATTEMPT_S = 20.0

_ALIVE = frozenset(
    {
        *(MachineState.STARTING, MachineState.RUNNING),
        *(MachineState.STOPPING, MachineState.SUSPENDING, MachineState.UNKNOWN),
    }
)
_AT_REST = frozenset({MachineState.STOPPED, MachineState.SUSPENDED})


async def clean_up(ctx: Context) -> None:
    """Take away machines that were never finished; finish removals and restores; log what fails."""
    for machine in ctx.registry.all():
        try:
            if machine.state is MachineState.CREATING:
                await discard(ctx, machine.id)
            elif machine.state is MachineState.REMOVING:
                with_volumes = machine.detail == remove.WITH_VOLUMES
                await remove.erase(ctx, machine.id, volumes=with_volumes)
            elif machine.state in _AT_REST:
                await _tidy(ctx, machine)
        except ArcboxError as error:
            _log.error("cannot clean up %s: %s", machine.spec.name, error)


async def adopt_all(ctx: Context) -> None:
    """Take over every machine that may run, some at a time; those left unknown are tried again."""
    gate = asyncio.Semaphore(_AT_ONCE)
    # Held from now on, though their turn may come later: nobody sees them half adopted.
    async with asyncio.TaskGroup() as tasks:
        for machine in ctx.registry.all():
            if machine.state in _ALIVE and ctx.locks.current(machine.id) is None:
                lock = contextlib.ExitStack()
                operation = lock.enter_context(ctx.locks.hold(machine, ADOPT))
                tasks.create_task(_held(ctx, machine, operation, gate, lock))
    while True:
        await asyncio.sleep(_RETRY_S)
        for machine in _unknown(ctx):
            if ctx.locks.current(machine.id) is None:
                with ctx.locks.hold(machine, ADOPT) as operation:
                    await _adopt(ctx, machine, operation)


def _unknown(ctx: Context) -> Iterable[Machine]:
    return [m for m in ctx.registry.all() if m.state is MachineState.UNKNOWN]


async def _held(
    ctx: Context,
    machine: Machine,
    operation: Operation,
    gate: asyncio.Semaphore,
    lock: contextlib.ExitStack,
) -> None:
    with lock:
        async with gate:
            await _adopt(ctx, machine, operation)


async def _adopt(ctx: Context, machine: Machine, operation: Operation) -> None:
    """Adopt one machine, whose lock is held; its state tells how it went. Never raises."""
    try:
        vm = await _find(ctx, machine)
        if vm is not None and _waits(ctx, machine):
            await vm.kill()
            vm = None
        if vm is None:
            await _gone(ctx, machine)
        elif machine.state is MachineState.STARTING:
            operation.verb = "start"
            await _finish_start(ctx, machine, vm, operation)
        else:
            await _take_over(ctx, machine, vm)
    except Exception as error:  # noqa: BLE001
        # Whatever it is, the machine is neither lost nor harmed.
        expected = isinstance(error, (ArcboxError, TimeoutError))
        _log.warning(
            "machine %s was not adopted: %s", machine.spec.name, error, exc_info=not expected
        )
        await _record_unknown(ctx, machine, str(error) or type(error).__name__)


async def _find(ctx: Context, machine: Machine) -> Vm | None:
    """Give the machine's process; None when it is gone for certain."""
    process = machine.process
    if process is None:
        # The daemon died between a launch and its record, or had no record to begin with.
        found = await asyncio.to_thread(listener, ctx.paths.machine(machine.id).qmp_socket)
        if not found.connects:
            return None
        if found.process is None:
            raise ArcboxError("something listens at its monitor, but which process is not known")
        process = found.process
    async with asyncio.timeout(ctx.scaled(_ATTEMPT_S, machine)):
        return await ctx.hypervisor.adopt(_config(ctx, machine), process)


def _waits(ctx: Context, machine: Machine) -> bool:
    """Tell whether a process may have been launched to resume a machine, and has not gone on yet.

    It may not have loaded all of the memory. That is still there, so another process can do it.
    """
    launched = machine.state in {MachineState.STARTING, MachineState.UNKNOWN}
    return launched and ctx.paths.machine(machine.id).suspended.is_dir()


async def _gone(ctx: Context, machine: Machine) -> None:
    """Record what a machine is whose process is gone for certain."""
    paths = ctx.paths.machine(machine.id)
    if not paths.restoring.exists():
        # A machine that ran has none, and one that was being stopped wants none.
        resumable = machine.state in {
            *(MachineState.STARTING, MachineState.SUSPENDING, MachineState.UNKNOWN)
        }
        if resumable and paths.suspended.is_dir():
            machine = await ctx.registry.move(
                machine.id, MachineState.SUSPENDED, process=None, detail=""
            )
        else:
            detail = "its process ended while no daemon ran"
            if machine.state is MachineState.SUSPENDING:
                detail += ", before its memory was saved"
            machine = await ctx.registry.move(
                machine.id, MachineState.STOPPED, process=None, detail=detail
            )
    await _tidy(ctx, machine)


async def _tidy(ctx: Context, machine: Machine) -> None:
    """Finish or take away what a crash has left of a machine without a process."""
    paths = ctx.paths.machine(machine.id)
    if machine.state is MachineState.STOPPED and not saved.left(paths):
        return
    if paths.restoring.exists():
        try:
            await snapshot.finish_restore(ctx, machine.id)
        except ArcboxError as error:
            await _record_unknown(ctx, machine, f"its restore is not finished: {error.message}")
            return
    elif machine.state is MachineState.STOPPED:
        await asyncio.to_thread(saved.clear, paths)
    elif not paths.suspended.is_dir():
        detail = "its saved memory is gone"
        await ctx.registry.move(machine.id, MachineState.STOPPED, detail=detail)
    await asyncio.to_thread(saved.sweep, paths)
    await snapshot.sweep(ctx, machine)


def _config(ctx: Context, machine: Machine) -> VmConfig:
    """Describe a machine that runs already: what it booted from is of no more use."""
    paths, spec = ctx.paths.machine(machine.id), machine.spec
    gone = paths.directory / "gone"
    return VmConfig(
        machine_id=machine.id,
        name=spec.name,
        uuid="",
        arch=spec.arch,
        cpus=spec.cpus,
        memory_bytes=spec.memory_bytes,
        mac=machine.mac,
        paths=paths,
        assets=BootAssets("", gone, gone, gone, gone, machine.kernel_version),
        cmdline=spec.cmdline,
        forwards=(ssh.forward(machine.ssh_port),) if machine.ssh_port else (),
    )


async def _finish_start(ctx: Context, machine: Machine, vm: Vm, operation: Operation) -> None:
    """Go on with a start that the last daemon's end interrupted; as any start, it may fail."""
    try:
        if machine.process is None and fresh(machine):
            # How it was launched is not known, and nobody has used it.
            raise ArcboxError(  # noqa: TRY301
                "the daemon ended while the machine was launched; start it again"
            )
        machine = await ctx.registry.change(machine.id, process=vm.process)
        async with operation.abortable(machine.spec.name):
            # It may have been launched from a saved memory, which leaves it paused.
            await vm.resume()
            await finish(ctx, machine, vm)
    except ArcboxError as error:
        await vm.kill()
        await ctx.registry.move(
            machine.id, MachineState.STOPPED, process=None, detail=error.message
        )
    await asyncio.to_thread(saved.sweep, ctx.paths.machine(machine.id))


async def _take_over(ctx: Context, machine: Machine, vm: Vm) -> None:
    paths = ctx.paths.machine(machine.id)
    # It lives, so its own memory is the truth, whatever of it is on the disk.
    await asyncio.to_thread(saved.discard, paths)
    try:
        await vm.resume()
    except HypervisorError as error:
        _log.warning("machine %s may be paused: %s", machine.spec.name, error)
    agent = await ctx.connector.connect(machine, paths, identity(ctx, machine))
    running = Running(vm, agent)
    # Before: if its agent is not ready now, they are there as soon as it is.
    shares.follow(ctx, machine.id, running)
    detail = ""
    try:
        await agent.wait_ready(ctx.scaled(_AGENT_S, machine))
        await shares.bring(ctx, machine, running)
    except TooLateError:
        detail = "it was adopted, and its agent has not answered since"
    if machine.state is MachineState.RUNNING:
        machine = await ctx.registry.change(machine.id, process=vm.process, detail=detail)
    else:
        machine = await ctx.registry.move(
            machine.id, MachineState.RUNNING, process=vm.process, detail=detail
        )
    watch(ctx, machine, running)
    try:
        await snapshot.sweep(ctx, machine)
    except ArcboxError as error:
        _log.warning("a snapshot of %s is left half made: %s", machine.spec.name, error)


async def _record_unknown(ctx: Context, machine: Machine, why: str) -> None:
    try:
        if ctx.registry.get(machine.id).state is MachineState.UNKNOWN:
            await ctx.registry.change(machine.id, detail=why)
        else:
            await ctx.registry.move(machine.id, MachineState.UNKNOWN, detail=why)
    except ArcboxError as error:
        _log.error("cannot record %s as unknown: %s", machine.spec.name, error)


def supervise(ctx: Context) -> None:
    """Adopt in the background, so that the daemon serves at once."""
    ctx.in_background(adopt_all(ctx), "adopt machines")
