"""Templates in use: one is made by booting an image once, and a new machine goes on from there."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from arcboxd.domain.guest import Identity
from arcboxd.domain.image import ProgressFn
from arcboxd.domain.machine import Boot, Machine, MachineSpec, MachineState, NewMachine
from arcboxd.errors import ArcboxError, HypervisorError, PreconditionError, UnsupportedError
from arcboxd.hypervisor.base import MemoryFile, SavedState, Vm, VmConfig
from arcboxd.machines import disks, leftover, ssh
from arcboxd.machines.context import Context
from arcboxd.machines.interfaces import GuestAgent
from arcboxd.machines.launch import ExitedError, first_answer, unless_exit, vm_config
from arcboxd.machines.template_store import NONE_FITS, Shape, Template
from arcboxd.machines.undo import Undo
from arcboxd.machines.validate import check_new, login_name, random_mac
from arcboxd.paths import MachinePaths, TemplatePaths
from arcboxd.process import ProcessHandle

_log = logging.getLogger(__name__)

_HOSTNAME = "template"
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
    spec = check_new(replace(new, name=_HOSTNAME), ctx.settings, ctx.images)

    def report(step: str, done: int, total: int) -> None:
        ctx.events.progress(_HOSTNAME, step, done, total, finished=0 < total <= done)

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
        machine = stand_in(ctx, spec, image.key)
        work = MachinePaths(ctx.paths.work / machine.id)
        disk = await ctx.assets.runtime(spec.arch, report) if runtime else None
        config = _freezable(await vm_config(ctx, machine, work), disk)
        shape = await _shape(ctx, config, image.key, spec.disk_bytes)
        found = ctx.templates.fitting(shape)
        if isinstance(found, Template) and found.shape == shape:
            return found
        async with Undo() as undo:
            work.directory.mkdir(mode=0o700, parents=True)
            undo.push_async_callback(delete, work.directory)
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
            template = await asyncio.to_thread(ctx.templates.publish, made, facts, shape)
            undo.pop_all()
    report("making a template: done", 1, 1)
    # What an upgrade has made void would only fill the disk.
    keys, freed = await prune(ctx)
    if keys:
        _log.info("removed %d templates of no more use, %d bytes", len(keys), freed)
    _log.info("made template %s of %s %s", template.key[:12], spec.distro, spec.version)
    return template


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


async def choose(ctx: Context, machine: Machine, config: VmConfig) -> Template | str:
    """Give the template that a machine may be started from; else say why there is none."""
    if not fresh(machine):
        return "the machine has been started before"
    if ctx.settings.templates == "off":
        return "templates are switched off"
    if config.data_disks:
        return "it has data disks"
    if machine.spec.kernel:
        return "it has a kernel of its own"
    why = ""
    # Who made a template with the container runtime wants it in new machines.
    for disk in dict.fromkeys((ctx.assets.find_runtime(machine.spec.arch), None)):
        ours = _freezable(config, disk)
        shape = await _shape(ctx, ours, machine.image_key, machine.spec.disk_bytes)
        found = ctx.templates.fitting(shape)
        if isinstance(found, Template):
            return found
        why = found if why in {"", NONE_FITS} else why
    return why


def fresh(machine: Machine) -> bool:
    """Tell whether nobody has ever used a machine, so that its disk may be made anew."""
    return machine.started_unix_ns == 0 and machine.boot is not Boot.COLD


async def restore(ctx: Context, template: Template, config: VmConfig, disk_bytes: int) -> Vm:
    """Launch a clone of a template; it is paused, and the disk of ``config`` is a new one.

    Raises:
        HypervisorError: QEMU refused, or the state does not fit it.
        NoRoomError: A forward's port is taken.
        StoreError: The template's files are gone.
    """
    await disks.on_template(config.paths, template.paths, template.shape.disk_bytes)
    config = replace(
        config,
        balloon=False,
        memory_file=MemoryFile(template.paths.memory, shared=False),
        machine_type=template.machine_type,
        runtime_disk=template.runtime_disk,
    )
    state = SavedState(
        template.paths.state,
        memory_in_file=True,
        hot_pages=ctx.templates.hot_pages.get(template.key, ()),
    )
    vm = await ctx.hypervisor.launch(config, state)
    try:
        if disk_bytes > template.shape.disk_bytes:
            await vm.resize_disk(disk_bytes)
    except BaseException:
        await vm.kill()
        raise
    return vm


async def remove(ctx: Context, ref: str) -> None:
    """Remove a template.

    Raises:
        TemplateNotFoundError: There is none.
        PreconditionError: A machine's disk rests on it.
        StoreError: It cannot be deleted.
    """
    template = ctx.templates.find(ref)
    if count := _machines(ctx, template):
        raise PreconditionError(
            f"the disks of {count} machines rest on template {template.key[:12]}",
            hint="remove these machines first",
        )
    await _remove(ctx, template)


async def _remove(ctx: Context, template: Template) -> int:
    if ctx.staged.wanted == template:
        ctx.staged.wanted = None
        ctx.staged.changed.set()
    if count := ctx.staged.count(template):
        _log.info("giving up %d staged clones of template %s", count, template.key[:12])
        await ctx.staged.give_up()
    return await asyncio.to_thread(ctx.templates.remove, template)


def _machines(ctx: Context, template: Template) -> int:
    """Count the machines whose disks rest on a template; staged clones are none yet."""
    return ctx.templates.links(template) - ctx.staged.count(template)


async def prune(ctx: Context) -> tuple[list[str], int]:
    """Remove every template that no machine can start from any more, and no disk rests on.

    Gives the keys, and the bytes that were freed.

    Raises:
        StoreError: One cannot be deleted.
    """
    keys, freed = [], 0
    for template in ctx.templates.all():
        if not _machines(ctx, template) and not await current(ctx, template):
            freed += await _remove(ctx, template)
            keys.append(template.key)
    return keys, freed


@dataclass(frozen=True, slots=True)
class TemplateUse:
    """A template, and what uses it."""

    template: Template
    allocated_bytes: int
    machines: int
    staged: int
    current: bool


async def uses(ctx: Context) -> list[TemplateUse]:
    """Give every template, oldest first, and what uses it."""
    return [await use(ctx, each) for each in ctx.templates.all()]


async def use(ctx: Context, template: Template) -> TemplateUse:
    """Tell what uses a template."""
    return TemplateUse(
        template,
        allocated_bytes=ctx.templates.allocated_bytes(template),
        machines=_machines(ctx, template),
        staged=ctx.staged.count(template),
        current=await current(ctx, template),
    )


async def current(ctx: Context, template: Template) -> bool:
    """Tell whether a new machine of the template's shape would start from it."""
    image = await ctx.images.find(template.distro, template.version, template.arch)
    if image is None or ctx.templates.distrusted(template):
        return False
    machine = stand_in(ctx, spec(template), image.key)
    work = MachinePaths(ctx.paths.work / machine.id)
    if template.runtime_disk not in {None, ctx.assets.find_runtime(template.arch)}:
        return False
    config = _freezable(await vm_config(ctx, machine, work), template.runtime_disk)
    return template.shape == await _shape(ctx, config, image.key, template.shape.disk_bytes)


def spec(template: Template) -> MachineSpec:
    """Give what a machine would be that is of a template's shape."""
    return MachineSpec(
        name=_HOSTNAME,
        cpus=template.cpus,
        memory_bytes=template.memory_bytes,
        disk_bytes=template.shape.disk_bytes,
        distro=template.distro,
        version=template.version,
        arch=template.arch,
        cmdline=template.cmdline,
    )


async def delete(directory: Path) -> None:
    """Delete a directory of a process that is gone."""
    await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


async def sweep(ctx: Context) -> None:
    """End and delete what an earlier daemon was making, and left."""
    with suppress(FileNotFoundError):
        for directory in list(ctx.paths.work.iterdir()):
            found = await asyncio.to_thread(leftover.listener, MachinePaths(directory).qmp_socket)
            if found.connects and found.process is None:
                _log.error("%s is left: it is not known which process works in it", directory)
                continue
            if found.process is not None and (handle := ProcessHandle.hold(found.process)):
                handle.signal(signal.SIGKILL)
                await handle.wait()
            await delete(directory)


def stand_in(ctx: Context, spec: MachineSpec, image_key: str) -> Machine:
    """Describe a machine that is nobody's; it is in no record."""
    return Machine(
        id=secrets.token_hex(6),
        spec=replace(spec, name=_HOSTNAME, ssh_public_keys=()),
        state=MachineState.STARTING,
        created_unix_ns=ctx.now_ns(),
        image_key=image_key,
        user=login_name(os.getuid()),
        mac=random_mac(),
        machine_id=secrets.token_hex(16),
    )


def _freezable(config: VmConfig, runtime_disk: Path | None) -> VmConfig:
    """Give the configuration of a machine whose RAM is a file in its directory."""
    memory = MemoryFile(TemplatePaths(config.paths.directory).memory, shared=True)
    return replace(config, memory_file=memory, balloon=False, runtime_disk=runtime_disk)


async def _shape(ctx: Context, config: VmConfig, image_key: str, disk_bytes: int) -> Shape:
    return Shape(
        fingerprint=await ctx.hypervisor.fingerprint(config),
        image_key=image_key,
        user=login_name(os.getuid()),
        uid=os.getuid(),
        disk_bytes=disk_bytes,
    )


async def _agent_of(ctx: Context, machine: Machine, work: MachinePaths, vm: Vm) -> GuestAgent:
    """Wait for the agent of a machine that is to be a template, as one that is nobody's yet."""
    await ssh.make_host_key(work, _HOSTNAME)
    who = Identity(
        machine_id=machine.machine_id,
        hostname=_HOSTNAME,
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
