"""Create a machine: its record, its directory, its disk and its keys."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from dataclasses import replace

from arcboxd.domain.machine import Machine, MachineSpec, MachineState, NewMachine
from arcboxd.errors import InvalidArgumentError
from arcboxd.machines import disks, ssh
from arcboxd.machines.context import Context
from arcboxd.machines.undo import Undo, together
from arcboxd.machines.validate import check_new, login_name, random_mac


async def create(ctx: Context, new: NewMachine) -> Machine:
    """Make a new, stopped machine.

    Everything is checked before anything exists. If it fails or is cancelled, nothing of the
    machine is left: no record, file or process. A base image that was built meanwhile stays.

    Raises:
        InvalidArgumentError: A value can never be accepted.
        UnsupportedError: This version or host cannot do it.
        MachineExistsError: The name is taken.
        AssetBuildError: The base image could not be built.
        NoRoomError: No port is free for SSH, or the disk is full.
        MissingToolError: A program is missing on the host, such as the QEMU of its architecture.
        StoreError: It could not be recorded.
    """
    spec = check_new(new, ctx.settings, ctx.images)
    ctx.registry.check_free(spec.name)
    ctx.hypervisor.check(spec.arch)
    machine = new_record(ctx, spec)
    paths = ctx.paths.machine(machine.id)
    with ctx.locks.hold(machine, "create"):
        async with Undo() as undo:
            undo.push_async_callback(discard, ctx, machine.id)
            await ctx.registry.add(machine)
            report = ctx.reporter(machine)
            image = await ctx.images.ensure(spec.distro, spec.version, spec.arch, report)
            if spec.disk_bytes < image.virtual_bytes:
                raise InvalidArgumentError(
                    f"a disk of {spec.disk_bytes} bytes is too small for {spec.distro}",
                    hint=f"give at least {image.virtual_bytes} bytes",
                )
            paths.directory.mkdir(mode=0o700, parents=True)
            disk = disks.on_image(paths, image, spec.disk_bytes)
            await together(disk, ssh.make_keys(machine, paths))
            machine = await ctx.registry.move(machine.id, MachineState.STOPPED, image_key=image.key)
            undo.pop_all()
    return machine


async def discard(ctx: Context, machine_id: str) -> None:
    """Take away a machine that was never finished: first its files, then its record. Idempotent."""
    if any(machine.id == machine_id for machine in ctx.registry.all()):
        for directory in (ctx.paths.machine(machine_id).directory, ctx.paths.volumes / machine_id):
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        await ctx.registry.erase(machine_id)


def new_record(ctx: Context, spec: MachineSpec) -> Machine:
    """Make up a machine that is no other; it is in no store yet.

    It has a port for SSH from the beginning: its first start has less to write then.

    Raises:
        NoRoomError: No port is free.
    """
    known = ctx.registry.all()
    ids, macs = {m.id for m in known}, {m.mac for m in known}
    while (machine_id := secrets.token_hex(6)) in ids:
        pass
    while (mac := random_mac()) in macs:
        pass
    machine = Machine(
        id=machine_id,
        spec=spec,
        state=MachineState.CREATING,
        created_unix_ns=ctx.now_ns(),
        image_key="",
        user=login_name(os.getuid()),
        mac=mac,
        machine_id=secrets.token_hex(16),
    )
    return replace(machine, ssh_port=ssh.choose_port(0, ssh.taken_ports(ctx, machine)))
