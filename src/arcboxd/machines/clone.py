"""Clone a machine: a new one with a copy of another's disks, and an identity of its own."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from arcboxd import durable
from arcboxd.domain.guest import ExecExit, ExecSpec
from arcboxd.domain.machine import Boot, Machine, MachineState
from arcboxd.durable import storing
from arcboxd.errors import ArcboxError, NoRoomError
from arcboxd.machines import disk_snapshots, disks, ssh
from arcboxd.machines.context import Context, Running
from arcboxd.machines.create import discard, new_record
from arcboxd.machines.guest import no_input
from arcboxd.machines.pause import paused
from arcboxd.machines.undo import Undo, together
from arcboxd.machines.validate import check_name
from arcboxd.process import CommandError, run, tool

_log = logging.getLogger(__name__)

_COPY_TIMEOUT_S = 3600.0
_SYNC_S = 5.0


async def clone(ctx: Context, ref: str, name: str) -> Machine:
    """Make a new, stopped machine with a copy of another's disks.

    Of a machine that is not stopped the copy is as after a power cut, but a guest that runs writes
    first what it holds back; it is halted while its disks are copied. Snapshots and a saved memory
    stay with the source. If it fails or is cancelled, nothing of the new machine is left.

    Args:
        ctx: What the machines live in.
        ref: The machine to copy.
        name: The new one's.

    Raises:
        InvalidArgumentError: The name cannot be a machine's.
        MachineExistsError: The name is taken.
        MachineNotFoundError: There is no such machine.
        MachineBusyError: Another operation holds it.
        MachineStateError: It is neither stopped nor suspended nor running.
        NoRoomError: The disk is full.
        CommandError: The disks could not be copied.
        MissingToolError: A program is missing on the host.
        StoreError: Something cannot be written.
    """
    check_name(name)
    ctx.registry.check_free(name)
    source_id = ctx.registry.find(ref).id
    await ctx.locks.settled(source_id)
    source = ctx.registry.get(source_id)
    # It has a disk with content: nothing may be started from in its place.
    new = replace(
        new_record(ctx, replace(source.spec, name=name)),
        image_key=source.image_key,
        user=source.user,
        boot=Boot.COLD,
    )
    with ctx.locks.hold(source, "clone") as operation, ctx.locks.hold(new, "create"):
        async with operation.abortable(source.spec.name):
            return await _clone(ctx, source, new)


async def _clone(ctx: Context, source: Machine, new: Machine) -> Machine:
    running = ctx.stable(source, "clone")
    paths = ctx.paths.machine(new.id)
    async with Undo() as undo:
        undo.push_async_callback(discard, ctx, new.id)
        await ctx.registry.add(new)
        with storing("make the clone"):
            paths.directory.mkdir(mode=0o700, parents=True)
            if ctx.paths.machine(source.id).runtime_marker.exists():
                paths.runtime_marker.touch()
        await together(_copy_disks(ctx, source, new, running), ssh.make_keys(new, paths))
        machine = await ctx.registry.move(new.id, MachineState.STOPPED)
        undo.pop_all()
    return machine


async def _copy_disks(ctx: Context, source: Machine, new: Machine, running: Running | None) -> None:
    old, paths = ctx.paths.machine(source.id), ctx.paths.machine(new.id)
    volumes = ctx.paths.volumes / new.id
    copies = {old.disk: paths.disk}
    for disk in sorted((ctx.paths.volumes / source.id).glob("*.qcow2")):
        with storing("make the clone"):
            volumes.mkdir(mode=0o700, parents=True, exist_ok=True)
        copies[disk] = volumes / disk.name
    for shared in (old.base_image, old.template_disk):
        if shared.exists():
            disks.share(shared, paths.directory / shared.name)
    report = ctx.reporter(new)
    report("copying the disks", 0, len(copies))
    async with AsyncExitStack() as halt:
        if running is not None:
            await _write_back(ctx, source, running)
            await halt.enter_async_context(paused(running))
        for disk, copy in copies.items():
            await _copy(disk, copy)
    for done, copy in enumerate(copies.values(), start=1):
        for tag in await disk_snapshots.tags(copy):
            await disk_snapshots.drop([copy], tag)
        with storing("make the clone"):
            await asyncio.to_thread(durable.sync, copy)
        report("copying the disks", done, len(copies))


async def _copy(disk: Path, copy: Path) -> None:
    argv = [tool("cp", package="coreutils"), "--reflink=auto", "--sparse=always", "--"]
    try:
        await run([*argv, str(disk), str(copy)], timeout_s=_COPY_TIMEOUT_S)
    except CommandError as error:
        if os.strerror(errno.ENOSPC) not in error.stderr:
            raise
        raise NoRoomError(f"there is no room for a copy of {disk}") from error


async def _write_back(ctx: Context, source: Machine, running: Running) -> None:
    """Let the guest write what it holds back; a copy without that is only older."""
    spec = ExecSpec(argv=("sync",), user="root")
    try:
        async with asyncio.timeout(ctx.scaled(_SYNC_S, source)):
            async for output in running.agent.exec(spec, no_input()):
                if isinstance(output, ExecExit) and output.code:
                    _log.info("sync in %s: %s %s", source.spec.name, output.code, output.reason)
    except (ArcboxError, TimeoutError) as error:
        _log.info("machine %s was not synced: %s", source.spec.name, error)
