"""Remove a machine and all that is its own."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path

from arcboxd.aio import complete
from arcboxd.domain.machine import Machine, MachineState
from arcboxd.errors import MachineStateError, StoreError
from arcboxd.machines.context import Context
from arcboxd.machines.leftover import listener
from arcboxd.machines.stop import end, interrupt

_log = logging.getLogger(__name__)

WITH_VOLUMES = "being removed, with its volumes"
WITHOUT_VOLUMES = "being removed"
"""The detail of a machine in `removing`, from which an interrupted removal is completed."""


async def remove(ctx: Context, ref: str, *, force: bool = False, volumes: bool = False) -> None:
    """Remove a machine for ever.

    A cancelled removal is completed all the same; one that a crash interrupts, at the next start.

    Args:
        ctx: What the machine lives in.
        ref: The machine.
        force: Kill it first if it runs, or if it is unknown; give up what a suspended one has in
            memory.
        volumes: Remove its data disks too; else they are kept.

    Raises:
        MachineNotFoundError: There is no such machine.
        MachineBusyError: Another operation holds it.
        MachineStateError: It is not stopped, and ``force`` is not set.
        StoreError: Something could not be deleted; the machine stays, in state ``removing``.
    """
    machine_id = ctx.registry.find(ref).id
    await ctx.locks.settled(machine_id)
    if force:
        await interrupt(ctx, machine_id)
    machine = ctx.registry.get(machine_id)
    with ctx.locks.hold(machine, "remove"):
        await complete(_remove(ctx, machine, force=force, volumes=volumes))


async def _remove(ctx: Context, machine: Machine, *, force: bool, volumes: bool) -> None:
    name = machine.spec.name
    if machine.state not in {MachineState.STOPPED, MachineState.REMOVING}:
        if not force:
            raise MachineStateError(
                f"cannot remove machine {name!r}: it is {machine.state}",
                hint=f"stop it first, or remove it with: arcbox rm --force {name}",
            )
        await end(ctx, machine, force=True)
        if listener(ctx.paths.machine(machine.id).qmp_socket).connects:
            raise MachineStateError(
                f"cannot remove machine {name!r}: a process that is not recorded holds its monitor",
                hint="find it with: ss -xlp, end it, and try again",
            )
    await erase(ctx, machine.id, volumes=volumes)


async def erase(ctx: Context, machine_id: str, *, volumes: bool) -> None:
    """Delete a stopped machine's files, then its record; the caller holds the machine.

    Raises:
        StoreError: Something could not be deleted.
    """
    machine = await ctx.registry.move(
        machine_id,
        MachineState.REMOVING,
        detail=WITH_VOLUMES if volumes else WITHOUT_VOLUMES,
    )
    disks = ctx.paths.volumes / machine_id
    if volumes:
        await _delete(disks)
    elif disks.exists():
        _log.info("the data disks of the removed machine %s stay in %s", machine.spec.name, disks)
    await _delete(ctx.paths.machine(machine_id).directory)
    await ctx.registry.erase(machine_id)
    await ctx.ports.forget(machine_id)


async def _delete(directory: Path) -> None:
    try:
        await asyncio.to_thread(shutil.rmtree, directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StoreError(
            f"cannot delete {directory}: {error}", hint="put that right, and remove it again"
        ) from error
