"""Stop a machine: ask its agent, then press its power button, then kill it."""

from __future__ import annotations

import asyncio
import logging
import signal

from arcboxd.aio import complete
from arcboxd.domain.machine import Machine, MachineState, ProcessIdentity
from arcboxd.errors import ArcboxError, HypervisorError, MachineStateError
from arcboxd.hypervisor.base import Vm
from arcboxd.machines import resume, saved
from arcboxd.machines.context import Context, Running
from arcboxd.machines.start import retire
from arcboxd.process import ProcessHandle

_log = logging.getLogger(__name__)

_ASK_S = 3.0
_POWERDOWN_S = 3.0
_KILL_MARGIN_S = 5.0
"""Past the grace period, for a guest that is about to be gone."""


async def stop(ctx: Context, ref: str, *, force: bool = False) -> None:
    """Stop a machine, gracefully if its guest agrees.

    Idempotent. It ends within the grace period and five seconds, times the accelerator's timeout
    scale, whatever the guest does. Only ``force`` interrupts a start or another stop. If cancelled,
    the guest may still be shutting down. A suspended machine is resumed first, so that its programs
    may save their work.

    Args:
        ctx: What the machine lives in.
        ref: The machine.
        force: SIGKILL at once; a suspended machine's memory is deleted.

    Raises:
        MachineNotFoundError: There is no such machine.
        MachineBusyError: Another operation holds it.
        MachineStateError: It is being made or removed, or it is unknown and ``force`` is not set.
        ArcboxError: It is suspended and cannot be resumed: the errors of `resume`.
    """
    machine_id = ctx.registry.find(ref).id
    await ctx.locks.settled(machine_id)
    if force:
        await interrupt(ctx, machine_id)
    machine = ctx.registry.get(machine_id)
    with ctx.locks.hold(machine, "stop") as operation:
        if machine.state is MachineState.STOPPED:
            return
        if machine.state is MachineState.SUSPENDED and not force:
            await resume.go_on(ctx, machine, operation)
            machine = ctx.registry.get(machine_id)
        await end(ctx, machine, force=force)


async def interrupt(ctx: Context, machine_id: str) -> None:
    """End what is under way with a machine, if that can be, by killing the process it works on."""
    while (operation := ctx.locks.current(machine_id)) is not None:
        machine = ctx.registry.get(machine_id)
        if operation.verb == "stop" and (running := ctx.running.get(machine_id)) is not None:
            await running.vm.kill()
        elif operation.abort("a forced stop"):
            pass
        elif machine.state is MachineState.STARTING and machine.process is not None:
            # Resumed, and its agent does not answer yet.
            await _kill(machine.process)
        else:
            return
        await operation.wait()


async def end(ctx: Context, machine: Machine, *, force: bool) -> None:
    """End a machine's process, or delete its saved memory; the caller holds the machine.

    Raises:
        MachineStateError: There is nothing that could be ended.
        StoreError: The saved memory is there still.
    """
    running = ctx.running.get(machine.id)
    if machine.state is MachineState.SUSPENDED:
        await complete(_stopped(ctx, machine.id))
        return
    if machine.state is MachineState.UNKNOWN:
        if not force:
            raise MachineStateError(
                f"machine {machine.spec.name!r} is unknown: {machine.detail}",
                hint=f"end it with: arcbox stop --force {machine.spec.name}",
            )
        if machine.process is not None:
            # Exactly the process that was recorded, which the user has asked for by force.
            await _kill(machine.process)
        await complete(_stopped(ctx, machine.id))
        return
    if running is None:
        raise MachineStateError(f"cannot stop machine {machine.spec.name!r}: it is {machine.state}")
    try:
        if machine.state is not MachineState.STOPPING:
            await ctx.registry.move(machine.id, MachineState.STOPPING)
        if not force:
            await _graceful(ctx, machine, running)
        await running.vm.kill()
    except asyncio.CancelledError:
        # It may still run, or be gone by now: the watcher then sees it as soon as we let go.
        await complete(_back_to_running(ctx, machine.id))
        raise
    await complete(_stopped(ctx, machine.id))


async def _back_to_running(ctx: Context, machine_id: str) -> None:
    await ctx.registry.move(machine_id, MachineState.RUNNING, detail="its stop was cancelled")


async def _graceful(ctx: Context, machine: Machine, running: Running) -> None:
    """Ask in two ways, and return when the process is gone or the time is over."""
    grace_s = ctx.settings.stop_grace_s
    loop = asyncio.get_running_loop()
    deadline = loop.time() + ctx.scaled(grace_s + _KILL_MARGIN_S, machine)
    asked = False
    try:
        async with asyncio.timeout(ctx.scaled(_ASK_S, machine)):
            await running.agent.shutdown(max(1, int(grace_s)))
        asked = True
    except (ArcboxError, TimeoutError) as error:
        _log.info("agent of %s was not asked to shut down: %s", machine.spec.name, error)
    if asked and await _exited(running.vm, loop.time() + ctx.scaled(grace_s / 2, machine)):
        return
    try:
        async with asyncio.timeout(ctx.scaled(_POWERDOWN_S, machine)):
            await running.vm.powerdown()
    except (HypervisorError, TimeoutError) as error:
        _log.info("power button of %s was not pressed: %s", machine.spec.name, error)
    if not await _exited(running.vm, deadline):
        _log.warning("machine %s did not end in time and is killed", machine.spec.name)


async def _exited(vm: Vm, deadline: float) -> bool:
    try:
        async with asyncio.timeout_at(deadline):
            await vm.wait_exit()
    except TimeoutError:
        return False
    return True


async def _stopped(ctx: Context, machine_id: str) -> None:
    """Forget all that a machine without a process could go on from, and record it as stopped."""
    paths = ctx.paths.machine(machine_id)
    await asyncio.to_thread(saved.clear, paths)
    paths.restoring.unlink(missing_ok=True)
    await retire(ctx, machine_id, "")


async def _kill(process: ProcessIdentity) -> None:
    if (handle := ProcessHandle.hold(process)) is not None:
        try:
            handle.signal(signal.SIGKILL)
            await handle.wait()
        finally:
            handle.release()
