"""Resume a suspended machine: a new process goes on from its saved memory."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial

from arcboxd.aio import complete
from arcboxd.domain.machine import Machine, MachineState
from arcboxd.errors import ArcboxError, MachineStateError, PreconditionError
from arcboxd.hypervisor.base import Forward, Vm
from arcboxd.machines import saved, start
from arcboxd.machines.context import Context
from arcboxd.machines.locks import Operation
from arcboxd.machines.saved import Saved
from arcboxd.machines.undo import Undo
from arcboxd.paths import SavedPaths

_log = logging.getLogger(__name__)


async def resume(ctx: Context, ref: str) -> None:
    """Let a suspended machine go on, and return once its agent answers.

    Idempotent: a machine that runs is left as it is. Until its guest goes on, a failure or a
    cancellation leaves it suspended as it was, with the reason as its detail. From then on it is
    brought to its end though the caller is cancelled; if the agent does not answer, the process is
    killed, and the machine is stopped.

    Raises:
        MachineNotFoundError: There is no such machine.
        MachineBusyError: Another operation holds it.
        MachineStateError: It is neither suspended nor running, or was stopped by force meanwhile.
        CorruptError: The saved memory is not whole.
        PreconditionError: This daemon runs machines by another accelerator.
        HypervisorError: QEMU refused, or ended.
        TooLateError: The agent did not answer in time.
        NoRoomError: No port is free for SSH.
        StoreError: Something cannot be written.
    """
    machine_id = ctx.registry.find(ref).id
    await ctx.locks.settled(machine_id)
    machine = ctx.registry.get(machine_id)
    if machine.state is MachineState.RUNNING and ctx.locks.current(machine_id) is None:
        return
    with ctx.locks.hold(machine, "resume") as operation:
        if machine.state is not MachineState.SUSPENDED:
            name = machine.spec.name
            raise MachineStateError(
                f"cannot resume machine {name!r}: it is {machine.state}",
                hint=f"start it with: arcbox start {name}"
                if machine.state is MachineState.STOPPED
                else f"see why with: arcbox inspect {name}",
            )
        await go_on(ctx, machine, operation)


async def go_on(ctx: Context, machine: Machine, operation: Operation) -> None:
    """Resume a suspended machine that the caller holds; the errors of `resume`."""
    name = machine.spec.name
    try:
        async with operation.abortable(name):
            machine, vm = await _load(ctx, machine)
    except ArcboxError as error:
        error.hint = error.hint or (
            f"it stays suspended; give its memory up, not its disks: arcbox stop --force {name}"
        )
        raise
    await complete(_run(ctx, machine, vm))


async def _load(ctx: Context, machine: Machine) -> tuple[Machine, Vm]:
    """Launch a process that waits, paused, where the memory was saved."""
    async with Undo() as undo:
        undo.push_failure(partial(_failed, ctx, machine.id))
        source = SavedPaths(ctx.paths.machine(machine.id).suspended)
        memory = await asyncio.to_thread(saved.read, source)
        _check(ctx, machine, memory)
        report = ctx.reporter(machine)
        report("loading the memory", 0, memory.state_bytes)
        machine = await ctx.registry.move(machine.id, MachineState.STARTING, detail="")
        vm = await _launch(ctx, machine, source, memory)
        undo.push_async_callback(vm.kill)
        # At once: from here on a daemon that dies leaves a process that the next one can find.
        machine = await ctx.registry.change(
            machine.id,
            process=vm.process,
            accelerator=memory.accelerator,
            kernel_version=memory.kernel_version,
            boot=memory.boot,
            boot_reason=memory.boot_reason,
        )
        report("loading the memory", memory.state_bytes, memory.state_bytes)
        undo.pop_all()
    return machine, vm


def _check(ctx: Context, machine: Machine, memory: Saved) -> None:
    ours = ctx.hypervisor.accelerator_for(machine.spec.arch).name
    if memory.accelerator != ours:
        raise PreconditionError(
            f"machine {machine.spec.name!r} was suspended under {memory.accelerator}, and this "
            f"daemon runs machines by {ours}",
            hint=f'set accelerator = "{memory.accelerator}" in config.toml, and restart the daemon',
        )


async def _launch(ctx: Context, machine: Machine, source: SavedPaths, memory: Saved) -> Vm:
    paths = ctx.paths.machine(machine.id)
    boot = await asyncio.to_thread(saved.keep_boot_files, source, paths)
    config = saved.vm_config(ctx, machine, memory, boot)

    async def launch(forwards: tuple[Forward, ...]) -> Vm:
        ours = replace(config, forwards=forwards)
        return await ctx.hypervisor.launch(ours, saved.state(source, memory))

    return await start.on_a_port(ctx, machine, launch)


async def _run(ctx: Context, machine: Machine, vm: Vm) -> None:
    """Let the guest go on; its saved memory is used up by that."""
    paths = ctx.paths.machine(machine.id)
    try:
        await asyncio.to_thread(saved.use_up, paths)
        await vm.resume()
        await start.finish(ctx, machine, vm)
    except Exception as error:
        # Not when the daemon ends meanwhile: the next one finds the process, and goes on from here.
        await vm.kill()
        state = MachineState.SUSPENDED if paths.suspended.is_dir() else MachineState.STOPPED
        await ctx.registry.move(machine.id, state, process=None, detail=_detail(error))
        raise
    finally:
        await asyncio.to_thread(saved.sweep, paths)


def _detail(error: BaseException | None) -> str:
    if isinstance(error, ArcboxError):
        why = error.message
    elif isinstance(error, asyncio.CancelledError):
        why = "it was cancelled"
    else:
        why = "the daemon's log says why"
    return f"it was not resumed: {why}"


async def _failed(ctx: Context, machine_id: str, error: BaseException | None) -> None:
    await start.not_started(ctx, machine_id, MachineState.SUSPENDED, _detail(error))
