"""The mounts of a machine that runs: brought to its process and its guest, and withdrawn again.

The record says what is wanted, the hypervisor what is plugged in, and the guest what is mounted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from arcboxd.domain.machine import DirectoryMount, Machine
from arcboxd.errors import ArcboxError, PreconditionError
from arcboxd.machines.context import Context, Running
from arcboxd.machines.mount_paths import directory, slot
from arcboxd.machines.undo import Undo

_log = logging.getLogger(__name__)

FILESYSTEM = "9p"
_UNPLUG_S = 15.0
"""Under kvm, for a guest to let go of a device that it does not use. Where there is no ACPI it
waits 5 s first, in case a button were pressed again."""


async def bring(ctx: Context, machine: Machine, running: Running) -> None:
    """Plug in and mount whatever of a machine's mounts is missing. Idempotent.

    One that cannot be made keeps neither the others nor the machine: why is noted and told.
    """
    shares = running.shares
    if not machine.spec.mounts or shares.withheld:
        return
    async with shares.lock:
        for mount in machine.spec.mounts:
            try:
                await _bring_one(ctx, machine, mount, running)
            except ArcboxError as error:
                _note(ctx, machine, running, mount, error)


async def bring_one(
    ctx: Context, machine: Machine, mount: DirectoryMount, running: Running
) -> None:
    """Plug one directory in, and mount it; if that fails, neither is so.

    Raises:
        InvalidArgumentError: There is no such directory any more.
        PreconditionError: The guest cannot mount it.
        MachineStateError: The machine's process has no place for it.
        HypervisorError: It was refused.
        TooLateError: The guest did not find it in time.
        AgentUnreachableError: The agent does not answer.
    """
    async with running.shares.lock:
        await _bring_one(ctx, machine, mount, running)


async def take_one(ctx: Context, machine: Machine, mount: DirectoryMount, running: Running) -> None:
    """Unmount one directory, and plug it out; if that fails, both are as before.

    Raises:
        PreconditionError: It is in use in the guest; says by whom.
        HypervisorError: It was refused.
        TooLateError: The guest did not let go of it in time.
        AgentUnreachableError: The agent does not answer.
    """
    async with running.shares.lock:
        await _take_one(ctx, machine, mount, running)


async def withdraw(ctx: Context, machine: Machine, running: Running) -> None:
    """Take all of a machine's mounts from it until `restore`, which is to be called in any case.

    Its memory cannot be saved while it has any.

    Raises:
        PreconditionError: One is in use in the guest; says by whom.
        ArcboxError: One cannot be taken for another reason.
    """
    if not machine.spec.mounts:
        return
    running.shares.withheld = True
    async with running.shares.lock:
        for mount in machine.spec.mounts:
            try:
                await _take_one(ctx, machine, mount, running)
            except PreconditionError as error:
                error.hint = error.hint or f"unmount it: arcbox mount rm {machine.spec.name} PATH"
                raise


async def restore(ctx: Context, machine: Machine, running: Running) -> None:
    """Bring back what `withdraw` took."""
    running.shares.withheld = False
    await bring(ctx, machine, running)


@asynccontextmanager
async def withdrawn(ctx: Context, machine: Machine, running: Running) -> AsyncIterator[None]:
    """Take all of a machine's mounts from it for as long as the block takes, however it ends.

    Raises:
        PreconditionError: One is in use in the guest; says by whom.
        ArcboxError: One cannot be taken for another reason.
    """
    async with Undo() as undo:
        undo.push_async_callback(restore, ctx, machine, running)
        await withdraw(ctx, machine, running)
        yield


def follow(ctx: Context, machine_id: str, running: Running) -> None:
    """Bring the mounts back at each further session: the guest may have rebooted."""

    def again() -> None:
        machine = ctx.registry.get(machine_id)
        if machine.spec.mounts:
            ctx.in_background(bring(ctx, machine, running), f"mounts of {machine.spec.name}")

    running.agent.on_session(again)


async def _bring_one(
    ctx: Context, machine: Machine, mount: DirectoryMount, running: Running
) -> None:
    shares, place = running.shares, slot(mount)
    async with Undo() as undo:
        if place not in await running.vm.shares():
            path = await asyncio.to_thread(directory, mount)
            await running.vm.plug_share(place, path)
            undo.push_async_callback(_unplug_quietly, ctx, machine, mount, running)
        await running.agent.mount(place.tag, FILESYSTEM, mount.guest_path, readonly=mount.readonly)
        undo.pop_all()
    shares.failures.pop(mount.guest_path, None)
    shares.mounted.add(mount.guest_path)


async def _take_one(
    ctx: Context, machine: Machine, mount: DirectoryMount, running: Running
) -> None:
    place = slot(mount)
    if place not in await running.vm.shares():
        running.shares.mounted.discard(mount.guest_path)
        return
    async with Undo() as undo:
        await running.agent.unmount(mount.guest_path)
        undo.push_async_callback(_mount_quietly, mount, running)
        await running.vm.unplug_share(place, ctx.scaled(_UNPLUG_S, machine))
        undo.pop_all()
    running.shares.mounted.discard(mount.guest_path)


async def _unplug_quietly(
    ctx: Context, machine: Machine, mount: DirectoryMount, running: Running
) -> None:
    # Else a later try would find the directory as it is now.
    with suppress(ArcboxError):
        await running.vm.unplug_share(slot(mount), ctx.scaled(_UNPLUG_S, machine))


async def _mount_quietly(mount: DirectoryMount, running: Running) -> None:
    try:
        await running.agent.mount(
            slot(mount).tag, FILESYSTEM, mount.guest_path, readonly=mount.readonly
        )
    except ArcboxError as error:
        running.shares.mounted.discard(mount.guest_path)
        running.shares.failures[mount.guest_path] = error.message


def _note(
    ctx: Context, machine: Machine, running: Running, mount: DirectoryMount, error: ArcboxError
) -> None:
    running.shares.mounted.discard(mount.guest_path)
    running.shares.failures[mount.guest_path] = error.message
    step = f"{mount.host_path} is not mounted on {mount.guest_path}: {error.message}"
    _log.warning("machine %s: %s", machine.spec.name, step)
    ctx.events.progress(machine.spec.name, step, 1, 1, finished=True)
