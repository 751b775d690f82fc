"""Mounts: directories of the host that are added to a machine, taken from it, and listed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from arcboxd.domain.machine import DirectoryMount, Machine
from arcboxd.errors import MountNotFoundError
from arcboxd.machines import shares
from arcboxd.machines.context import Context, Running
from arcboxd.machines.mount_paths import check_guest_path, check_mount
from arcboxd.machines.undo import Undo


@dataclass(frozen=True, slots=True)
class MountStatus:
    """A mount, and what has become of it."""

    mount: DirectoryMount
    filesystem: str
    """Empty unless it is mounted."""
    state: str
    """``mounted``, ``waiting`` for the machine to run, or ``failed``."""
    detail: str
    """Why it failed."""


async def add(ctx: Context, ref: str, wanted: DirectoryMount) -> MountStatus:
    """Add a mount to a machine; to one that runs at once, else for its next start.

    Idempotent: the same mount again is made if it had failed. If it fails or is cancelled, record
    and machine are as before.

    Raises:
        InvalidArgumentError: A path can never be accepted, or the host has no such directory.
        MountExistsError: It is at, above or below the place of another.
        NoRoomError: The machine has too many.
        MachineNotFoundError: There is no such machine.
        MachineBusyError: Another operation holds it.
        MachineStateError: It is neither stopped nor suspended nor running, or of an older version.
        PreconditionError: The guest cannot mount it.
        HypervisorError: The hypervisor refused it.
        TooLateError: The guest did not find it in time.
        AgentUnreachableError: The agent does not answer.
        StoreError: It cannot be recorded.
    """
    machine_id = ctx.registry.find(ref).id
    await ctx.locks.settled(machine_id)
    machine = ctx.registry.get(machine_id)
    with ctx.locks.hold(machine, "mount") as operation:
        running = ctx.stable(machine, "add a mount to")
        guest_path = check_guest_path(wanted.guest_path)
        known = [m for m in machine.spec.mounts if m.guest_path == guest_path]
        async with operation.abortable(machine.spec.name), Undo() as undo:
            if known and replace(known[0], slot=0, guest_path=wanted.guest_path) == wanted:
                mount = known[0]
            else:
                mount = check_mount(wanted, machine.spec.mounts)
                # Recorded first: what is plugged in is always recorded, also after a crash.
                undo.push_async_callback(_record, ctx, machine_id, machine.spec.mounts)
                await _record(ctx, machine_id, (*machine.spec.mounts, mount))
            if running is not None:
                await shares.bring_one(ctx, machine, mount, running)
            undo.pop_all()
    return _status(mount, running)


async def remove(ctx: Context, ref: str, guest_path: str) -> None:
    """Take a mount from a machine, at once if it runs.

    If it fails or is cancelled, record and machine are as before.

    Raises:
        InvalidArgumentError: Nothing can be mounted there.
        MountNotFoundError: The machine has no mount there.
        MachineNotFoundError: There is no such machine.
        MachineBusyError: Another operation holds it.
        MachineStateError: It is neither stopped nor suspended nor running.
        PreconditionError: It is in use in the guest; says by whom.
        HypervisorError: The hypervisor refused it.
        TooLateError: The guest did not let go of it in time.
        AgentUnreachableError: The agent does not answer.
        StoreError: It cannot be recorded.
    """
    machine_id = ctx.registry.find(ref).id
    await ctx.locks.settled(machine_id)
    machine = ctx.registry.get(machine_id)
    with ctx.locks.hold(machine, "unmount") as operation:
        running = ctx.stable(machine, "take a mount from")
        mount = _find(machine, check_guest_path(guest_path))
        async with operation.abortable(machine.spec.name), Undo() as undo:
            if running is not None:
                undo.push_async_callback(shares.bring, ctx, machine, running)
                await shares.take_one(ctx, machine, mount, running)
            rest = tuple(each for each in machine.spec.mounts if each != mount)
            await _record(ctx, machine_id, rest)
            undo.pop_all()
        if running is not None:
            running.shares.failures.pop(mount.guest_path, None)


async def mounts(ctx: Context, ref: str) -> list[MountStatus]:
    """Tell a machine's mounts, in the order in which they were added.

    Raises:
        MachineNotFoundError: There is no such machine.
    """
    machine_id = ctx.registry.find(ref).id
    await ctx.locks.settled(machine_id)
    machine, running = ctx.registry.get(machine_id), ctx.running.get(machine_id)
    return [_status(mount, running) for mount in machine.spec.mounts]


async def _record(ctx: Context, machine_id: str, wanted: tuple[DirectoryMount, ...]) -> None:
    spec = ctx.registry.get(machine_id).spec
    await ctx.registry.change(machine_id, spec=replace(spec, mounts=wanted))


def _find(machine: Machine, guest_path: str) -> DirectoryMount:
    for mount in machine.spec.mounts:
        if mount.guest_path == guest_path:
            return mount
    raise MountNotFoundError(
        f"machine {machine.spec.name!r} has no mount on {guest_path!r}",
        hint=f"see them all with: arcbox mount ls {machine.spec.name}",
    )


def _status(mount: DirectoryMount, running: Running | None) -> MountStatus:
    if running is not None and mount.guest_path in running.shares.mounted:
        return MountStatus(mount, shares.FILESYSTEM, "mounted", "")
    if running is not None and (why := running.shares.failures.get(mount.guest_path)):
        return MountStatus(mount, "", "failed", why)
    return MountStatus(mount, "", "waiting", "")
