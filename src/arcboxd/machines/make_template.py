"""Makes templates: an image is booted once, brought to rest and frozen."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace

from arcboxd.domain.guest import Identity
from arcboxd.domain.image import ProgressFn
from arcboxd.domain.machine import Machine, MachineSpec, NewMachine
from arcboxd.errors import ArcboxError, HypervisorError, PreconditionError, UnsupportedError
from arcboxd.hypervisor.base import SavedState, Vm
from arcboxd.machines import disks, ssh, template
from arcboxd.machines.context import Context
from arcboxd.machines.interfaces import GuestAgent
from arcboxd.machines.launch import ExitedError, first_answer, unless_exit, vm_config
from arcboxd.machines.template_store import Template
from arcboxd.machines.undo import Undo
from arcboxd.machines.validate import check_new
from arcboxd.paths import MachinePaths, TemplatePaths

_log = logging.getLogger(__name__)

_INITS = {"systemd", "openrc"}
_SETTLE_S = 60.0
"""Under kvm, from the agent's first answer to a system at rest."""
_RUNTIME_S = 60.0
"""Under kvm, for containerd and dockerd to start."""
_QUIET_S = 0.3
"""Between the agent's last answer and the freeze, for what the answer itself set going."""
_SAVE_S = 60.0
_AFTER_START_S = 3.0
"""Under kvm, before a template is made in the background: the user's machine boots still."""


async def prepare(ctx: Context, new: NewMachine, *, runtime: bool = False) -> Template:
    """Make a template for machines like ``new``, or give the one that there is.

    Args:
        ctx: What templates are made in.
        new: A machine, whose name does not matter.
        runtime: Freeze it with containerd and dockerd running.

    Raises:
        InvalidArgumentError: A value can never be accepted.
        UnsupportedError: This version or host, or the distribution, cannot do it.
        PreconditionError: Templates are switched off.
        AssetBuildError: What it boots from could not be built.
        HypervisorError: QEMU refused, or ended too early.
        TooLateError: The guest did not answer, or did not come to rest.
        StoreError: It could not be kept.
    """
    if ctx.settings.templates == "off":
        raise PreconditionError(
            "templates are switched off", hint='set templates = "manual" in config.toml'
        )
    spec = check_new(replace(new, name=template.HOSTNAME), ctx.settings, ctx.images)

    def report(step: str, done: int, total: int) -> None:
        ctx.events.progress(template.HOSTNAME, step, done, total, finished=0 < total <= done)

    return await make(ctx, spec, report, runtime=runtime)


async def make(
    ctx: Context,
    spec: MachineSpec,
    report: ProgressFn,
    *,
    runtime: bool = False,
    background: bool = False,
) -> Template:
    """Boot an image, bring it to rest and freeze it; or give the template that there is.

    One at a time. If it fails or is cancelled, nothing of it is left.

    Raises:
        UnsupportedError: The distribution cannot be brought to rest.
        HypervisorError: QEMU refused, or ended too early.
        TooLateError: The guest did not answer, or did not come to rest.
        StoreError: It could not be kept.
    """
    async with ctx.template_lock:
        image = await ctx.images.ensure(spec.distro, spec.version, spec.arch, report)
        if image.init not in _INITS:
            # Its agent would say so too, after a boot.
            raise UnsupportedError("templates need an image with systemd or OpenRC")
        machine = template.stand_in(ctx, spec, image.key)
        work = MachinePaths(ctx.paths.work / machine.id)
        disk = await ctx.assets.runtime(spec.arch, report) if runtime else None
        config = template.freezable(await vm_config(ctx, machine, work), disk)
        shape = await template.shape_of(ctx, config, image.key, spec.disk_bytes)
        found = ctx.templates.fitting(shape)
        if isinstance(found, Template) and found.shape == shape:
            return found
        async with Undo() as undo:
            work.directory.mkdir(mode=0o700, parents=True)
            undo.push_async_callback(template.delete, work.directory)
            report("making a template: booting", 0, 0)
            await disks.on_image(work, image, spec.disk_bytes)
            vm = await ctx.hypervisor.launch(replace(config, background=background))
            undo.push_async_callback(vm.kill)
            agent = await _agent_of(ctx, machine, work, vm)
            undo.push_async_callback(agent.close)
            await _settle(ctx, machine, vm, agent, report, runtime=runtime)
            report("making a template: freezing", 0, 0)
            state, mark = await _freeze(vm, agent, work, ctx.scaled(_SAVE_S, machine))
            facts: dict[str, object] = {
                "distro": spec.distro,
                "version": spec.version,
                "arch": spec.arch,
                "cpus": spec.cpus,
                "cmdline": spec.cmdline,
                "memory_bytes": config.memory_bytes,
                "machine_type": state.machine_type,
                "created_unix_ns": ctx.now_ns(),
                "link_mark": mark,
                "runtime_disk": str(disk or ""),
            }
            made = TemplatePaths(work.directory)
            published = await asyncio.to_thread(ctx.templates.publish, made, facts, shape)
            undo.pop_all()
    report("making a template: done", 1, 1)
    # What an upgrade has made void would only fill the disk.
    keys, freed = await template.prune(ctx)
    if keys:
        _log.info("removed %d templates of no more use, %d bytes", len(keys), freed)
    _log.info("made template %s of %s %s", published.key[:12], spec.distro, spec.version)
    return published


def make_soon(ctx: Context, machine: Machine, *, runtime: bool = False) -> None:
    """Make a template of a machine's shape in the background, unless that is not wanted."""
    if ctx.settings.templates != "auto":
        return
    name = f"template of {machine.spec.distro}{' with the runtime' if runtime else ''}"
    if ctx.works_on(name):
        return

    async def work() -> None:
        await asyncio.sleep(ctx.scaled(_AFTER_START_S, machine))
        try:
            await make(ctx, machine.spec, _quiet, runtime=runtime, background=True)
        except ArcboxError as error:
            _log.warning("no template was made of machine %s: %s", machine.spec.name, error)

    ctx.in_background(work(), name)


async def _agent_of(ctx: Context, machine: Machine, work: MachinePaths, vm: Vm) -> GuestAgent:
    """Wait for the agent of a machine that is to be a template, as one that is nobody's yet."""
    await ssh.make_host_key(work, template.HOSTNAME)
    who = Identity(
        machine_id=machine.machine_id,
        hostname=template.HOSTNAME,
        mac=machine.mac,
        user_name=machine.user,
        user_uid=os.getuid(),
        authorized_keys=(),
        ssh_host_keys=ssh.host_keys(work),
        disk_bytes=machine.spec.disk_bytes,
    )
    timeout_s = ctx.scaled(ctx.settings.start_timeout_s, machine)
    return await first_answer(ctx, machine, work, vm, who, timeout_s=timeout_s)


async def _settle(
    ctx: Context, machine: Machine, vm: Vm, agent: GuestAgent, report: ProgressFn, *, runtime: bool
) -> None:
    """Wait until the guest is at rest."""
    try:
        if runtime:
            report("making a template: starting the container runtime", 0, 0)
            await unless_exit(vm, _with_runtime(agent, ctx.scaled(_RUNTIME_S, machine)))
        report("making a template: waiting for it to come to rest", 0, 0)
        await unless_exit(vm, agent.settle(ctx.scaled(_SETTLE_S, machine)))
    except ExitedError:
        raise HypervisorError("the machine that was to be a template ended") from None


async def _with_runtime(agent: GuestAgent, timeout_s: float) -> None:
    answer = await agent.ensure_runtime(start_if_needed=True, timeout_s=timeout_s)
    if not answer.ready:
        raise HypervisorError(f"the container runtime did not start: {answer.message}")


async def _freeze(
    vm: Vm, agent: GuestAgent, work: MachinePaths, timeout_s: float
) -> tuple[SavedState, int]:
    """Save everything but the RAM, which is in its file already, and end the process.

    The link stands meanwhile: a clone whose port were closed would first have to hear of its
    opening, and to greet. Gives also what lets a host go on with a clone's agent.
    """
    await asyncio.sleep(_QUIET_S)
    await vm.pause()
    mark = agent.mark
    state = await vm.save(
        TemplatePaths(work.directory).state, memory_in_file=True, timeout_s=timeout_s
    )
    await vm.kill()
    await agent.close()
    return state, mark


def _quiet(step: str, done: int, total: int) -> None:
    """Report nothing."""
