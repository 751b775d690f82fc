"""Templates in use: which one a new machine goes on from, what rests on it, and its end."""

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

from arcboxd.domain.machine import Boot, Machine, MachineSpec, MachineState
from arcboxd.errors import PreconditionError
from arcboxd.hypervisor.base import MemoryFile, SavedState, Vm, VmConfig
from arcboxd.machines import disks, leftover
from arcboxd.machines.context import Context
from arcboxd.machines.launch import vm_config
from arcboxd.machines.template_store import NONE_FITS, Shape, Template
from arcboxd.machines.validate import login_name, random_mac
from arcboxd.paths import MachinePaths, TemplatePaths
from arcboxd.process import ProcessHandle

_log = logging.getLogger(__name__)

HOSTNAME = "template"
"""Of a machine that is nobody's."""


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
        ours = freezable(config, disk)
        shape = await shape_of(ctx, ours, machine.image_key, machine.spec.disk_bytes)
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
    config = freezable(await vm_config(ctx, machine, work), template.runtime_disk)
    return template.shape == await shape_of(ctx, config, image.key, template.shape.disk_bytes)


def spec(template: Template) -> MachineSpec:
    """Give what a machine would be that is of a template's shape."""
    return MachineSpec(
        name=HOSTNAME,
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
        spec=replace(spec, name=HOSTNAME, ssh_public_keys=()),
        state=MachineState.STARTING,
        created_unix_ns=ctx.now_ns(),
        image_key=image_key,
        user=login_name(os.getuid()),
        mac=random_mac(),
        machine_id=secrets.token_hex(16),
    )


def freezable(config: VmConfig, runtime_disk: Path | None) -> VmConfig:
    """Give the configuration of a machine whose RAM is a file in its directory."""
    memory = MemoryFile(TemplatePaths(config.paths.directory).memory, shared=True)
    return replace(config, memory_file=memory, balloon=False, runtime_disk=runtime_disk)


async def shape_of(ctx: Context, config: VmConfig, image_key: str, disk_bytes: int) -> Shape:
    """Give all that a template must have in common with a machine of this configuration."""
    return Shape(
        fingerprint=await ctx.hypervisor.fingerprint(config),
        image_key=image_key,
        user=login_name(os.getuid()),
        uid=os.getuid(),
        disk_bytes=disk_bytes,
    )
