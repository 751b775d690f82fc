"""Change what a stopped machine is made of."""

from __future__ import annotations

from dataclasses import replace

from arcboxd.aio import complete
from arcboxd.domain.machine import Machine, MachineSpec, MachineState
from arcboxd.errors import InvalidArgumentError, MachineStateError
from arcboxd.machines import disks
from arcboxd.machines.context import Context
from arcboxd.machines.validate import check_cpus, check_disk, check_memory


async def set_machine(
    ctx: Context, ref: str, *, cpus: int = 0, memory_bytes: int = 0, disk_bytes: int = 0
) -> Machine:
    """Give a stopped machine other processors, other memory or a larger disk; 0 is as it is.

    Idempotent. The guest sees it at its next start, and grows its root filesystem then.

    Raises:
        InvalidArgumentError: A value can never be accepted, or the disk would become smaller.
        MachineNotFoundError: There is no such machine.
        MachineBusyError: Another operation holds it.
        MachineStateError: It is not stopped.
        StoreError: It was not recorded.
    """
    machine_id = ctx.registry.find(ref).id
    await ctx.locks.settled(machine_id)
    machine = ctx.registry.get(machine_id)
    with ctx.locks.hold(machine, "set"):
        spec = machine.spec
        if machine.state is not MachineState.STOPPED:
            raise MachineStateError(
                f"cannot change machine {spec.name!r}: it is {machine.state}",
                hint=f"stop it first: arcbox stop {spec.name}",
            )
        if disk_bytes and disk_bytes < spec.disk_bytes:
            raise InvalidArgumentError(
                f"the disk of machine {spec.name!r} has {spec.disk_bytes} bytes, and cannot shrink "
                f"to {disk_bytes}",
                hint="a disk only grows; to copy files to a smaller machine: arcbox cp",
            )
        changed = replace(
            spec,
            cpus=check_cpus(cpus or spec.cpus),
            memory_bytes=check_memory(memory_bytes or spec.memory_bytes),
            disk_bytes=check_disk(disk_bytes) if disk_bytes else spec.disk_bytes,
        )
        return await complete(_change(ctx, machine, changed))


async def _change(ctx: Context, machine: Machine, spec: MachineSpec) -> Machine:
    if spec.disk_bytes > machine.spec.disk_bytes:
        # Before it is recorded: a disk that is larger than the record says does no harm.
        await disks.grow(ctx.paths.machine(machine.id), spec.disk_bytes)
    return await ctx.registry.change(machine.id, spec=spec)
