"""Suspend a machine: write its memory to disk, and end its process."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from arcboxd.aio import complete
from arcboxd.domain.machine import Machine, MachineState
from arcboxd.errors import ArcboxError, MachineStateError
from arcboxd.machines import ports, saved, shares
from arcboxd.machines.context import Context, Running
from arcboxd.machines.launch import ExitedError, identity, unless_exit
from arcboxd.machines.undo import Undo
from arcboxd.paths import SavedPaths

_log = logging.getLogger(__name__)

_AGENT_S = 2.0
"""How long an agent is waited for, under kvm, when a machine goes on that was not suspended."""


async def suspend(ctx: Context, ref: str) -> int:
    """Suspend a running machine; give the bytes that its memory takes on the disk.

    Idempotent. If it fails or is cancelled, the machine runs on, with nothing lost but the sessions
    with its agent. A cancellation that comes too late is told when the machine is suspended.

    Raises:
        MachineNotFoundError: There is no such machine.
        MachineBusyError: Another operation holds it.
        MachineStateError: It does not run, or was stopped by force meanwhile.
        PreconditionError: A mount is in use in the guest; says by whom.
        NoRoomError: The disk is full.
        HypervisorError: QEMU refused, or ended.
        TooLateError: It took too long.
        StoreError: Something cannot be written.
    """
    machine_id = ctx.registry.find(ref).id
    await ctx.locks.settled(machine_id)
    machine = ctx.registry.get(machine_id)
    name = machine.spec.name
    if machine.state is MachineState.SUSPENDED and ctx.locks.current(machine_id) is None:
        return saved.size_bytes(SavedPaths(ctx.paths.machine(machine_id).suspended).state)
    with ctx.locks.hold(machine, "suspend") as operation:
        running = ctx.running.get(machine_id)
        if machine.state is not MachineState.RUNNING or running is None:
            raise MachineStateError(
                f"cannot suspend machine {name!r}: it is {machine.state}",
                hint="only a running machine has a memory to save",
            )
        async with operation.abortable(name):
            return await _suspend(ctx, machine, running)


async def _suspend(ctx: Context, machine: Machine, running: Running) -> int:
    paths = ctx.paths.machine(machine.id)
    async with Undo() as undo:
        undo.push_async_callback(shares.restore, ctx, machine, running)
        await shares.withdraw(ctx, machine, running)
        undo.push_failure(partial(_go_on, ctx, machine, running))
        await ctx.registry.move(machine.id, MachineState.SUSPENDING, detail="")
        # So that the memory has no session in it that nobody will answer.
        await running.agent.close()
        await running.vm.pause()
        memory = await saved.save(ctx, machine, running.vm, SavedPaths(paths.suspending))
        await complete(_end(ctx, machine, running, undo))
    return memory.state_bytes


async def _end(ctx: Context, machine: Machine, running: Running, undo: Undo) -> None:
    paths = ctx.paths.machine(machine.id)
    await asyncio.to_thread(saved.publish, paths.suspending, paths.suspended)
    undo.pop_all()
    await running.vm.kill()
    del ctx.running[machine.id]
    await ports.detach(ctx, machine.id, running)
    await running.vm.detach()
    await ctx.registry.move(machine.id, MachineState.SUSPENDED, process=None)


async def _go_on(
    ctx: Context, machine: Machine, running: Running, error: BaseException | None
) -> None:
    """Let a machine go on that was not suspended after all."""
    detail = ""
    if not isinstance(error, asyncio.CancelledError):
        detail = f"it was not suspended: {error}"
    try:
        await asyncio.to_thread(saved.discard, ctx.paths.machine(machine.id))
        await running.vm.resume()
    except ArcboxError as trouble:
        # If its process is gone, the watcher will say so.
        _log.error("machine %s does not go on: %s", machine.spec.name, trouble)
        detail = f"it was not suspended, and does not go on: {trouble.message}"
    if ctx.registry.get(machine.id).state is MachineState.SUSPENDING:
        await ctx.registry.move(machine.id, MachineState.RUNNING, detail=detail)
    await _reconnect(ctx, machine, running)


async def _reconnect(ctx: Context, machine: Machine, running: Running) -> None:
    """Make a new link to the agent of a machine that runs; wait for it a little. Never raises."""
    paths = ctx.paths.machine(machine.id)
    try:
        await running.agent.close()
        running.agent = await ctx.connector.connect(machine, paths, identity(ctx, machine))
        shares.follow(ctx, machine.id, running)
        await unless_exit(running.vm, running.agent.wait_ready(ctx.scaled(_AGENT_S, machine)))
    except (ArcboxError, ExitedError) as error:
        _log.warning("the agent of machine %s is out of reach: %s", machine.spec.name, error)
