"""The container runtime of a machine: its disk, whether it is ready, and what makes it so."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from arcboxd.domain.machine import Machine, MachineState, NewMachine
from arcboxd.domain.runtime import FAILED, STARTED, RuntimeAnswer, RuntimeStatus, not_running
from arcboxd.errors import ArcboxError, MachineBusyError, MachineNotFoundError
from arcboxd.machines import make_template
from arcboxd.machines.again import at_each_session
from arcboxd.machines.context import Context, Running
from arcboxd.machines.create import create
from arcboxd.machines.start import start

_log = logging.getLogger(__name__)

_READY_S = 10.0
"""Under kvm: for the agent of a guest that reboots right now."""
_LOOK_S = 10.0
_ENSURE_S = 60.0
"""Both under kvm: for the agent to look, and to start all that the runtime is."""
_OWN_S = 10.0
"""Under kvm: for a Docker of the guest's own, where ours cannot be had."""
_DISK_S = 60.0
"""How long the agent waits for the disk."""
_SETTLE_S = 0.5
"""Under kvm: how long a machine that was started is left to itself before its runtime starts."""
_AGAINST = frozenset({"stop", "suspend", "remove"})
"""Operations that nobody should undo by starting the machine right after them."""


def default_machine(ctx: Context) -> Machine | None:
    """Give the machine that is used where none is named, if there is one."""
    name = ctx.settings.default_machine
    return next((m for m in ctx.registry.all() if m.spec.name == name), None)


async def ensure_default(ctx: Context) -> Machine:
    """Give the machine that is used where none is named, made by the defaults if there is none.

    Raises:
        ArcboxError: It could not be made: `arcboxd.machines.create`.
    """
    name = ctx.settings.default_machine

    async def make() -> Machine:
        return default_machine(ctx) or await create(ctx, NewMachine(name=name))

    return await ctx.defaults.join(name, make)


def resolve(ctx: Context, ref: str) -> Machine:
    """Give a machine; the default one for an empty reference.

    Raises:
        InvalidArgumentError: The reference cannot name one machine.
        MachineNotFoundError: It names none.
    """
    if ref:
        return ctx.registry.find(ref)
    if (machine := default_machine(ctx)) is None:
        name = ctx.settings.default_machine
        raise MachineNotFoundError(
            f"there is no machine {name!r}, which is the default one",
            hint=f"make it with: arcbox create {name}",
        )
    return machine


async def plug(ctx: Context, machine_id: str) -> None:
    """Plug the container runtime's disk in for Docker, which it is to have whenever it runs.

    Raises:
        ArcboxError: As `plug_disk`.
    """
    await plug_disk(ctx, machine_id)
    await _mark(ctx, machine_id)


async def plug_disk(ctx: Context, machine_id: str) -> None:
    """Plug the container runtime's disk into a running machine, building it if it is missing.

    Idempotent; callers at the same time share one, which goes on though all of them give up.

    Raises:
        MachineNotFoundError: There is no such machine.
        MachineStateError: It does not run, or is of a version that nothing can be plugged into.
        AssetBuildError: The disk could not be built.
        MissingToolError: A program is missing on the host.
        HypervisorError: QEMU refused it.
    """
    await ctx.plugs.join(machine_id, partial(_plug, ctx, machine_id))


async def _plug(ctx: Context, machine_id: str) -> None:
    machine, _ = await ctx.running_machine(machine_id, "plug the container runtime into")
    disk = ctx.assets.find_runtime(machine.spec.arch)
    if disk is None:
        disk = await ctx.assets.runtime(machine.spec.arch, ctx.reporter(machine))
    # It may have taken minutes.
    _, running = await ctx.running_machine(machine_id, "plug the container runtime into")
    await running.vm.plug_runtime(disk)


async def ensure(ctx: Context, ref: str, *, start_if_needed: bool) -> RuntimeAnswer:
    """Have a machine's container runtime ready, or only look.

    Idempotent; callers at the same time share one, which goes on though all of them give up. With
    ``start_if_needed`` a machine that is stopped or suspended is started, and the default machine
    is made if it does not exist. A runtime that could not be started is no error but an answer.

    Args:
        ctx: What the machine lives in.
        ref: The machine; empty for the default one.
        start_if_needed: Do what is needed; else nothing is changed.

    Raises:
        MachineNotFoundError: There is no such machine.
        MachineBusyError: It is being stopped, suspended or removed.
        AgentUnreachableError: Its agent does not answer.
        TooLateError: Its agent was not back in time after a reboot.
        AssetBuildError: What it needs could not be built.
        ArcboxError: The machine could not be started: `arcboxd.machines.start`.
    """
    if start_if_needed:
        machine = resolve(ctx, ref) if ref else await ensure_default(ctx)
        return await ctx.runtimes.join(machine.id, partial(_ensure, ctx, machine.id))
    machine = resolve(ctx, ref)
    await ctx.locks.settled(machine.id)
    if (running := ctx.running.get(machine.id)) is None:
        return RuntimeAnswer(
            ready=False, endpoint="", message=_at_rest(ctx, machine), status=FAILED
        )
    return await _look(ctx, machine, running)


async def _look(ctx: Context, machine: Machine, running: Running) -> RuntimeAnswer:
    timeout_s = ctx.scaled(_LOOK_S, machine)
    return await running.agent.ensure_runtime(start_if_needed=False, timeout_s=timeout_s)


async def _ensure(ctx: Context, machine_id: str) -> RuntimeAnswer:
    machine, running = await have_running(ctx, machine_id, "start the container runtime of")
    answer = await _look(ctx, machine, running)
    if not answer.ready:
        answer = await _begin(ctx, machine, running)
    if answer.ready:
        await _mark(ctx, machine_id)
        if answer.status == STARTED and not machine.spec.kernel:
            # Whoever uses it once will do so in other machines: these are to have it at once.
            make_template.make_soon(ctx, machine, runtime=True)
    else:
        _log.warning("the runtime of %s is not ready: %s", machine.spec.name, answer.message)
    return answer


async def _begin(ctx: Context, machine: Machine, running: Running) -> RuntimeAnswer:
    """Let the agent start the runtime; what it does before it needs the disk goes on meanwhile."""
    plugging = asyncio.ensure_future(plug(ctx, machine.id))
    asking = asyncio.ensure_future(_ask(ctx, machine, running))
    try:
        await asyncio.wait({plugging, asking}, return_when=asyncio.FIRST_COMPLETED)
        if not asking.done() and plugging.exception() is not None:
            # Only a Docker of the guest's own can be ready now.
            await asyncio.wait({asking}, timeout=ctx.scaled(_OWN_S, machine))
        if not asking.done():
            await plugging
        answer = await asking
        if not answer.ready and not plugging.done():
            # The agent waits a minute, and the disk may take longer to build.
            await plugging
            answer = await _ask(ctx, machine, running)
        return answer
    finally:
        for task in (plugging, asking):
            task.cancel()
        await asyncio.gather(plugging, asking, return_exceptions=True)


async def _ask(ctx: Context, machine: Machine, running: Running) -> RuntimeAnswer:
    timeout_s = ctx.scaled(_ENSURE_S, machine) + _DISK_S
    return await running.agent.ensure_runtime(start_if_needed=True, timeout_s=timeout_s)


async def have_running(ctx: Context, machine_id: str, verb: str) -> tuple[Machine, Running]:
    """Give a machine whose agent answers, starting it if it does not run.

    Raises:
        ArcboxError: It could not be started: `arcboxd.machines.start`.
        MachineStateError: It does not run; the verb says what could not be done.
        TooLateError: Its agent was not back in time after a reboot.
    """
    while True:
        operation = ctx.locks.current(machine_id)
        if operation is None and machine_id in ctx.running:
            break
        if operation is None or operation.verb in _AGAINST:
            await start(ctx, machine_id)
            break
        await operation.wait()
    machine, running = await ctx.running_machine(machine_id, verb)
    await running.agent.wait_ready(ctx.scaled(_READY_S, machine))
    return machine, running


async def status(ctx: Context, ref: str) -> RuntimeStatus:
    """Tell how a machine's container runtime is; changes nothing.

    Args:
        ctx: What the machine lives in.
        ref: The machine; empty for the default one.

    Raises:
        MachineNotFoundError: There is no such machine.
        AgentUnreachableError: Its agent does not answer.
    """
    machine = resolve(ctx, ref)
    await ctx.locks.settled(machine.id)
    if (running := ctx.running.get(machine.id)) is None:
        return not_running(_at_rest(ctx, machine))
    return await running.agent.runtime_status()


def _at_rest(ctx: Context, machine: Machine) -> str:
    return f"machine {machine.spec.name!r} is {ctx.registry.get(machine.id).state}"


async def _mark(ctx: Context, machine_id: str) -> None:
    await asyncio.to_thread(ctx.paths.machine(machine_id).runtime_marker.touch)


def wanted(ctx: Context, machine_id: str) -> bool:
    """Tell whether a machine has had its runtime, and is to have it whenever it runs."""
    return ctx.paths.machine(machine_id).runtime_marker.exists()


def follow(ctx: Context, machine_id: str, running: Running) -> None:
    """Have the runtime of a machine that runs ready again whenever its guest begins anew.

    So containers with a restart policy come back with their machine.
    """
    at_each_session(
        ctx,
        running,
        f"runtime of {machine_id}",
        wanted=lambda: wanted(ctx, machine_id),
        work=lambda: _restore(ctx, machine_id),
    )


async def settled(ctx: Context, machine_id: str) -> Machine | None:
    """Leave a machine that began anew alone for a moment; None if it does not run after that."""
    if machine_id not in ctx.running:
        return None
    await asyncio.sleep(ctx.scaled(_SETTLE_S, ctx.registry.get(machine_id)))
    if machine_id not in ctx.running:
        return None
    machine = ctx.registry.get(machine_id)
    return machine if machine.state is MachineState.RUNNING else None


async def _restore(ctx: Context, machine_id: str) -> None:
    machine = await settled(ctx, machine_id)
    if machine is None:
        return
    try:
        await ensure(ctx, machine_id, start_if_needed=True)
    except MachineBusyError:
        return
    except ArcboxError as error:
        _log.warning("the runtime of %s was not started: %s", machine.spec.name, error)
