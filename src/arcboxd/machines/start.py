"""Start a machine: launch it, wait for its agent, and watch over it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Unpack

from arcboxd import aio
from arcboxd.domain.machine import Boot, Machine, MachineState
from arcboxd.errors import ArcboxError, MachineStateError, NoRoomError, StoreError
from arcboxd.hypervisor.base import Forward, Vm, VmConfig
from arcboxd.machines import (
    console,
    disks,
    make_template,
    ports,
    resume,
    shares,
    ssh,
    staging,
    template,
)
from arcboxd.machines.context import Context, Running
from arcboxd.machines.launch import first_answer, identity, vm_config
from arcboxd.machines.locks import NOTE_END
from arcboxd.machines.registry import Changes
from arcboxd.machines.staged import Staged
from arcboxd.machines.template_store import NONE_FITS, Template
from arcboxd.machines.undo import Undo
from arcboxd.settings import MIB

_log = logging.getLogger(__name__)

_LAUNCH_TRIES = 3
_OTHERS_S = 4.0
"""Under kvm: how long the services of one machine wait for the starts of others."""
_SERVICES_S = 0.1
"""Under kvm: what the services of one machine take to begin."""
_MOST_HOT_BYTES = 32 * MIB
"""More than any clone writes to until it answers: what it did since then is not the next one's."""
_TEMPLATE_TIMEOUT_S = 10.0
"""Under kvm, for the agent of a machine that does not boot."""


async def start(ctx: Context, ref: str) -> None:
    """Start a machine, or resume it if it is suspended, and return once its agent answers.

    Idempotent: a machine that runs is left as it is. If it fails or is cancelled, the process is
    killed and the machine is stopped again, with the reason as its detail.

    Raises:
        MachineNotFoundError: There is no such machine.
        MachineBusyError: Another operation holds it.
        MachineStateError: It is neither stopped nor running, or was stopped by force meanwhile.
        HypervisorError: QEMU refused, or ended before the agent answered.
        TooLateError: The agent did not answer in time.
        AssetBuildError: What it boots from could not be built.
        NoRoomError: No port is free for SSH.
    """
    machine_id = ctx.registry.find(ref).id
    await ctx.locks.settled(machine_id)
    machine = ctx.registry.get(machine_id)
    if machine.state is MachineState.RUNNING and ctx.locks.current(machine_id) is None:
        return
    with ctx.locks.hold(machine, "start") as operation:
        if machine.state is MachineState.SUSPENDED:
            await resume.go_on(ctx, machine, operation)
            return
        if machine.state is not MachineState.STOPPED:
            name = machine.spec.name
            raise MachineStateError(
                f"cannot start machine {name!r}: it is {machine.state}",
                hint=f"see why with: arcbox inspect {name}",
            )
        async with operation.abortable(machine.spec.name):
            await _boot(ctx, machine)


async def _boot(ctx: Context, machine: Machine) -> None:
    async with Undo() as undo:
        undo.push_failure(partial(_failed, ctx, machine.id))
        machine = await ctx.registry.move(machine.id, MachineState.STARTING, detail="")
        config = await vm_config(ctx, machine)
        choice = await template.choose(ctx, machine, config)
        if isinstance(choice, Template):
            async with ctx.restores:
                why = await _from_template(ctx, machine, config, choice)
            if not why and choice.runtime_disk is not None:
                config.paths.runtime_marker.touch()
        else:
            why = choice
        if why:
            await _cold(ctx, machine, config, why)
        undo.pop_all()
    if not why:
        ctx.in_background(_begin(ctx, machine), f"services of {machine.spec.name}")
    elif why == NONE_FITS:
        make_template.make_soon(ctx, machine)


async def _begin(ctx: Context, machine: Machine) -> None:
    """Let a clone's services begin once its first command has, and no other machine starts."""
    most_s = ctx.scaled(_OTHERS_S, machine)
    await ctx.others_first(machine, most_s=most_s)
    async with ctx.begins:
        if ctx.locks.count("start"):
            await ctx.others_first(machine, most_s=most_s)
        if (running := ctx.running.get(machine.id)) is None:
            return
        try:
            await running.agent.begin()
        except ArcboxError as error:
            # It does so by itself before long.
            _log.info("services of %s were not begun: %s", machine.spec.name, error)
        await asyncio.sleep(ctx.scaled(_SERVICES_S, machine))


async def _from_template(ctx: Context, machine: Machine, config: VmConfig, found: Template) -> str:
    """Start a machine from a template; if that cannot be, say why, and leave nothing of it."""
    reason = f"from template {found.key[:12]}"
    if (staged := ctx.staged.take(found)) is not None:
        try:
            await _from_staged(ctx, machine, config, staged, f"{reason}, staged")
        except (ArcboxError, OSError) as error:
            # It says nothing of the template: the clone may have died long ago.
            _log.warning("machine %s could not take a staged clone: %s", machine.spec.name, error)
        else:
            staging.want(ctx, found)
            return ""

    async def restore(forwards: tuple[Forward, ...]) -> Vm:
        ours = replace(config, forwards=forwards)
        return await template.restore(ctx, found, ours, machine.spec.disk_bytes)

    try:
        async with Undo() as undo:
            vm = await _launch(ctx, machine, restore, **_restored(config, reason))
            undo.push_async_callback(vm.kill)
            await finish(ctx, machine, vm, restored=True, frozen=found.link_mark)
            undo.pop_all()
        learning = f"hot pages of {found.key[:12]}"
        if found.key not in ctx.templates.hot_pages and not ctx.works_on(learning):
            ctx.in_background(_learn(ctx, found, vm), learning)
    except ArcboxError as error:
        _log.warning("machine %s could not start %s: %s", machine.spec.name, reason, error)
        # Only a lack of room says nothing of the template.
        if not isinstance(error, NoRoomError):
            ctx.templates.distrust(found, error.message)
        return f"it could not start {reason}: {error.message}"
    staging.want(ctx, found)
    return ""


async def _learn(ctx: Context, template: Template, vm: Vm) -> None:
    """Note what a clone has written to that has just answered: the next ones will, too."""
    pages = await vm.own_pages()
    if 0 < sum(length for _, length in pages) <= _MOST_HOT_BYTES:
        ctx.templates.hot_pages[template.key] = pages


async def _from_staged(
    ctx: Context, machine: Machine, config: VmConfig, staged: Staged, reason: str
) -> None:
    """Make a clone that waits a machine's process; if that fails, nothing of the clone is left."""

    async def equip(forwards: tuple[Forward, ...]) -> Vm:
        for forward in forwards:
            await staged.vm.add_forward(forward)
        if machine.spec.disk_bytes > staged.template.shape.disk_bytes:
            await staged.vm.resize_disk(machine.spec.disk_bytes)
        return staged.vm

    async with Undo() as undo:
        undo.push_async_callback(staged.end)
        vm = await _launch(ctx, machine, equip, **_restored(config, reason))
        vm.rehome(config.paths)
        await template.delete(staged.paths.directory)
        await finish(ctx, machine, vm, restored=True)
        undo.pop_all()


def _restored(config: VmConfig, reason: str) -> Changes:
    return {
        "kernel_version": config.assets.kernel_version,
        "boot": Boot.TEMPLATE,
        "boot_reason": reason,
    }


async def _cold(ctx: Context, machine: Machine, config: VmConfig, why: str) -> None:
    new = template.fresh(machine)
    if new and config.paths.template_disk.exists():
        # A start from a template failed, and its disk may have been written to.
        image = await ctx.images.get(machine.image_key)
        if image is None:
            raise StoreError(f"the base image {machine.image_key} is gone from the cache")
        await disks.on_image(config.paths, image, machine.spec.disk_bytes)

    async def launch(forwards: tuple[Forward, ...]) -> Vm:
        return await ctx.hypervisor.launch(replace(config, forwards=forwards))

    async with Undo() as undo:
        vm = await _launch(
            ctx,
            machine,
            launch,
            kernel_version=config.assets.kernel_version,
            # A machine that nobody has used yet stays fresh until its first start has succeeded.
            boot=None if new else Boot.COLD,
            boot_reason=why,
        )
        undo.push_async_callback(vm.kill)
        await finish(ctx, machine, vm)
        undo.pop_all()


async def finish(
    ctx: Context, machine: Machine, vm: Vm, *, restored: bool = False, frozen: int = 0
) -> None:
    """Wait for the agent of a launched machine, and count the machine as running.

    The caller kills the process if this fails.

    Args:
        ctx: What the machine lives in.
        machine: The machine, in state ``starting``.
        vm: Its process.
        restored: It is a clone of a template, still paused.
        frozen: The `mark` of the session in which it was frozen, if it was in one.

    Raises:
        HypervisorError: The process ended.
        TooLateError: The agent did not answer in time.
        ArcboxError: The agent's link or the monitor broke.
    """
    seconds = _TEMPLATE_TIMEOUT_S if restored else ctx.settings.start_timeout_s
    timeout_s = ctx.scaled(seconds, machine)
    paths = ctx.paths.machine(machine.id)
    async with Undo() as undo:
        who = identity(ctx, machine)
        agent = await first_answer(
            ctx, machine, paths, vm, who, timeout_s=timeout_s, paused=restored, frozen=frozen
        )
        undo.push_async_callback(agent.close)
        running = Running(vm, agent)
        await shares.bring(ctx, machine, running)
        await vm.allow_reset()
        machine = await ctx.registry.move(
            machine.id,
            MachineState.RUNNING,
            started_unix_ns=ctx.now_ns(),
            boot=ctx.registry.get(machine.id).boot or Boot.COLD,
            detail="",
        )
        undo.pop_all()
    shares.follow(ctx, machine.id, running)
    watch(ctx, machine, running)


def watch(ctx: Context, machine: Machine, running: Running) -> None:
    """Count a machine as this daemon's, and record its end when it comes by itself."""
    ctx.running[machine.id] = running
    running.watcher = aio.spawn(_watch(ctx, machine.id, running), name=f"watch {machine.spec.name}")
    for call in ctx.on_running:
        call(machine.id, running)
    ports.attach(ctx, machine, running)


async def retire(ctx: Context, machine_id: str, detail: str) -> None:
    """Let go of a machine whose process is gone, and record it as stopped."""
    if (running := ctx.running.pop(machine_id, None)) is not None:
        await ports.detach(ctx, machine_id, running)
        await running.agent.close()
        await running.vm.detach()
    await ctx.registry.move(machine_id, MachineState.STOPPED, process=None, detail=detail)


async def _launch(
    ctx: Context,
    machine: Machine,
    launch: Callable[[tuple[Forward, ...]], Awaitable[Vm]],
    **changes: Unpack[Changes],
) -> Vm:
    """Launch with a port for SSH, and record the process and what else has changed."""
    ctx.paths.machine(machine.id).console_log.unlink(missing_ok=True)
    vm = await on_a_port(ctx, machine, launch)
    try:
        accelerator = ctx.hypervisor.accelerator_for(machine.spec.arch)
        # At once: from here on a daemon that dies leaves a process that the next one can find.
        changes |= {"process": vm.process, "accelerator": accelerator.name}
        await ctx.registry.change(machine.id, **changes)
    except BaseException:
        await aio.complete(vm.kill())
        raise
    return vm


async def on_a_port(
    ctx: Context, machine: Machine, launch: Callable[[tuple[Forward, ...]], Awaitable[Vm]]
) -> Vm:
    """Launch with a port for SSH, the one that the machine had if that is free; it is recorded.

    Raises:
        NoRoomError: None stayed free for long enough.
    """
    taken = ssh.taken_ports(ctx, machine)
    wanted = machine.ssh_port
    for _ in range(_LAUNCH_TRIES):
        port = ssh.choose_port(wanted, taken)
        if port != machine.ssh_port:
            machine = await ctx.registry.change(machine.id, ssh_port=port)
            ssh.write_config(machine, ctx.paths.machine(machine.id))
        try:
            return await launch((ssh.forward(port),))
        except NoRoomError:
            # Another program was quicker to take the port that was free a moment ago.
            wanted, taken = 0, taken | {port}
    raise NoRoomError("no TCP port of 127.0.0.1 stayed free for long enough")


async def _watch(ctx: Context, machine_id: str, running: Running) -> None:
    await running.vm.wait_exit()
    await ctx.locks.free(machine_id)
    # Nothing is awaited between the lock seen free and held: no operation can come between.
    if ctx.running.get(machine_id) is running:
        with ctx.locks.hold(ctx.registry.get(machine_id), NOTE_END):
            await retire(ctx, machine_id, _ending(ctx, machine_id))


def _ending(ctx: Context, machine_id: str) -> str:
    paths = ctx.paths.machine(machine_id)
    if console.powered_off(paths.console_log):
        return ""
    words = " / ".join(console.tail(paths.qemu_log)[-2:])
    return (
        "its process ended although nobody stopped it here, and the guest did not say that it "
        f"powered off; see {paths.console_log}" + (f"; QEMU said: {words}" if words else "")
    )


async def not_started(ctx: Context, machine_id: str, state: MachineState, detail: str) -> None:
    """Record that a machine is in this state again, or still, and why."""
    if ctx.registry.get(machine_id).state is MachineState.STARTING:
        await ctx.registry.move(machine_id, state, process=None, detail=detail)
    else:
        await ctx.registry.change(machine_id, detail=detail)


async def _failed(ctx: Context, machine_id: str, error: BaseException | None) -> None:
    if isinstance(error, ArcboxError):
        detail = error.message
    elif isinstance(error, asyncio.CancelledError):
        detail = "its last start was cancelled"
    else:
        detail = "its last start failed; the daemon's log says why"
    await not_started(ctx, machine_id, MachineState.STOPPED, detail)
