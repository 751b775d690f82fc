"""Snapshots: a machine's disks, and its memory unless it is stopped, to be brought back to later.

The disks' part is in their own files, under a tag; all else is a directory, ``snapshots/NAME``.
It appears whole, by a rename, when all of the snapshot is there, and loses that name first when the
snapshot is removed. So a directory without its name is what a crash has left of either.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from arcboxd import durable
from arcboxd.aio import complete
from arcboxd.domain.machine import Boot, Machine, MachineState
from arcboxd.durable import storing
from arcboxd.errors import (
    ArcboxError,
    CorruptError,
    InvalidArgumentError,
    MachineStateError,
    NoRoomError,
    SnapshotExistsError,
    SnapshotNotFoundError,
)
from arcboxd.machines import disk_snapshots, saved, shares, template
from arcboxd.machines.context import Context, Running
from arcboxd.machines.pause import paused
from arcboxd.machines.stop import end
from arcboxd.machines.undo import Undo
from arcboxd.machines.validate import check_name
from arcboxd.paths import MachinePaths, SavedPaths, SnapshotPaths

_log = logging.getLogger(__name__)

MAX_SNAPSHOTS = 64
"""Of one machine. Its disks hold a table of them, which is read whenever they are opened."""
_FORMAT = 1
_UNFINISHED = ".part"
"""No name of a snapshot ends so."""
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot, as its manifest tells it."""

    name: str
    created_unix_ns: int
    data_disks: tuple[str, ...]
    """The disks that it is of, beside the root disk."""
    memory: bool
    saved_bytes: int
    """Of the memory, on the host's disk."""


async def create(ctx: Context, ref: str, name: str = "") -> Snapshot:
    """Take a snapshot of a machine, which stays as it is; one that runs is halted meanwhile.

    If it fails or is cancelled, nothing of it is left.

    Args:
        ctx: What the machine lives in.
        ref: The machine.
        name: The snapshot's; empty for one made of the time.

    Raises:
        InvalidArgumentError: The name cannot be one.
        SnapshotExistsError: The machine has a snapshot of that name.
        MachineNotFoundError: There is no such machine.
        MachineBusyError: Another operation holds it.
        MachineStateError: It is neither stopped nor suspended nor running.
        PreconditionError: A mount is in use in the guest; says by whom.
        NoRoomError: The disk is full, or the machine has too many snapshots.
        HypervisorError: QEMU refused, or ended.
        StoreError: Something cannot be written.
    """
    if name:
        _check(name)
    machine_id = ctx.registry.find(ref).id
    await ctx.locks.settled(machine_id)
    machine = ctx.registry.get(machine_id)
    with ctx.locks.hold(machine, "snapshot") as operation:
        async with operation.abortable(machine.spec.name):
            return await _create(ctx, machine, name)


async def snapshots(ctx: Context, ref: str) -> list[Snapshot]:
    """Give a machine's snapshots, oldest first.

    Raises:
        MachineNotFoundError: There is no such machine.
    """
    paths = ctx.paths.machine(ctx.registry.find(ref).id)
    return await asyncio.to_thread(_all, paths)


async def restore(ctx: Context, ref: str, name: str, *, force: bool = False) -> None:
    """Bring a machine back to a snapshot.

    It is then suspended if the snapshot has its memory, else stopped. What the disks and a
    suspended machine's memory hold is lost. Once begun, it is brought to its
    end, by the next daemon if need be.

    Args:
        ctx: What the machine lives in.
        ref: The machine.
        name: The snapshot's.
        force: Kill the machine first if it runs.

    Raises:
        SnapshotNotFoundError: The machine has no such snapshot.
        MachineNotFoundError: There is no such machine.
        MachineBusyError: Another operation holds it.
        MachineStateError: It runs, and ``force`` is not set; or it is in no state for this.
        CorruptError: The snapshot is not whole; the machine is as it was.
        CommandError: qemu-img failed. The machine is ``unknown`` until that succeeds, which is
            tried now and then.
        StoreError: The same, for another file.
    """
    machine_id = ctx.registry.find(ref).id
    await ctx.locks.settled(machine_id)
    machine = ctx.registry.get(machine_id)
    with ctx.locks.hold(machine, "restore"):
        running = ctx.stable(machine, "restore")
        snapshot = await asyncio.to_thread(_find, ctx, machine, name)
        if running is not None and not force:
            raise MachineStateError(
                f"cannot restore machine {machine.spec.name!r}: it is running",
                hint="stop it or suspend it first, or lose what it does now: add --force",
            )
        await _check_whole(ctx, machine, snapshot)
        await complete(_restore(ctx, machine, snapshot))


async def remove(ctx: Context, ref: str, name: str) -> None:
    """Remove a snapshot; the machine stays as it is.

    Once begun, it is brought to its end, by the next daemon if need be.

    Raises:
        SnapshotNotFoundError: The machine has no such snapshot.
        MachineNotFoundError: There is no such machine.
        MachineBusyError: Another operation holds it.
        MachineStateError: It is neither stopped nor suspended nor running.
        HypervisorError: QEMU refused; what the snapshot takes is given back later.
        CommandError: The same, for qemu-img.
        StoreError: It cannot be removed.
    """
    machine_id = ctx.registry.find(ref).id
    await ctx.locks.settled(machine_id)
    machine = ctx.registry.get(machine_id)
    with ctx.locks.hold(machine, "snapshot's removal"):
        ctx.stable(machine, "remove a snapshot of")
        await asyncio.to_thread(_find, ctx, machine, name)
        await complete(_remove(ctx, machine, name))


async def finish_restore(ctx: Context, machine_id: str) -> None:
    """Bring a machine without a process back to the snapshot that its journal names.

    May be done again as often as it fails.

    Raises:
        ArcboxError: It failed; the machine must not be used before it succeeds.
    """
    paths = ctx.paths.machine(machine_id)
    machine = ctx.registry.get(machine_id)
    try:
        name = str(json.loads(paths.restoring.read_text())["name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{paths.restoring} does not name a snapshot: {error!r}") from error
    snapshot = await asyncio.to_thread(_find, ctx, machine, name)
    await asyncio.to_thread(saved.discard, paths)
    await disk_snapshots.apply(_disks(ctx, machine, snapshot.data_disks), _tag(name))
    state = MachineState.STOPPED
    if snapshot.memory:
        memory = SavedPaths(_paths(paths, name).memory)
        await asyncio.to_thread(saved.link, memory, SavedPaths(paths.suspending))
        await asyncio.to_thread(saved.publish, paths.suspending, paths.suspended)
        state = MachineState.SUSPENDED
    if machine.state is state:
        await ctx.registry.change(machine_id, detail="")
    else:
        await ctx.registry.move(machine_id, state, process=None, detail="")
    # Durably: it must never come back once the machine has gone on.
    with storing("end the restore"):
        paths.restoring.unlink()
        durable.sync(paths.directory)


async def sweep(ctx: Context, machine: Machine) -> None:
    """Take away what is left of snapshots that were being made or removed.

    Raises:
        ArcboxError: It is there still.
    """
    paths = ctx.paths.machine(machine.id)
    for directory in await asyncio.to_thread(list, paths.snapshots.glob(f"*{_UNFINISHED}")):
        await _drop(ctx, machine, SnapshotPaths(directory))


async def _create(ctx: Context, machine: Machine, name: str) -> Snapshot:
    paths = ctx.paths.machine(machine.id)
    running = ctx.stable(machine, "take a snapshot of")
    known = await asyncio.to_thread(_all, paths)
    name = _choose(name, {each.name for each in known}, ctx.now_ns())
    if len(known) >= MAX_SNAPSHOTS:
        raise NoRoomError(
            f"machine {machine.spec.name!r} has {len(known)} snapshots, which is the most",
            hint=f"remove one with: arcbox snapshot rm {machine.spec.name} {known[0].name}",
        )
    part = SnapshotPaths(paths.snapshots / f"{name}{_UNFINISHED}")
    if part.directory.exists():
        await _drop(ctx, machine, part)
    if template.fresh(machine):
        # Else its first start would make its disk anew, and the snapshot would be gone.
        await ctx.registry.change(machine.id, boot=Boot.COLD)
    async with Undo() as undo:
        undo.push_async_callback(_give_up, ctx, machine, part)
        with storing("take the snapshot"):
            part.directory.mkdir(mode=0o700, parents=True)
        if running is not None:
            data_disks, saved_bytes = await _take_live(ctx, machine, running, part, _tag(name))
        else:
            data_disks, saved_bytes = await _take(ctx, machine, part, _tag(name))
        memory = part.memory.is_dir()
        made = Snapshot(name, ctx.now_ns(), data_disks, memory, saved_bytes)
        await complete(_publish(paths, part, made, undo))
    return made


async def _take_live(
    ctx: Context, machine: Machine, running: Running, part: SnapshotPaths, tag: str
) -> tuple[tuple[str, ...], int]:
    async with shares.withdrawn(ctx, machine, running), paused(running):
        # Before the memory: to save that, QEMU lets go of the disks. Nothing runs between the two.
        await running.vm.snapshot_disks(tag)
        memory = await saved.save(ctx, machine, running.vm, SavedPaths(part.memory))
    return memory.data_disks, memory.state_bytes


async def _take(
    ctx: Context, machine: Machine, part: SnapshotPaths, tag: str
) -> tuple[tuple[str, ...], int]:
    saved_bytes = 0
    if machine.state is MachineState.SUSPENDED:
        source = SavedPaths(ctx.paths.machine(machine.id).suspended)
        await asyncio.to_thread(saved.link, source, SavedPaths(part.memory))
        saved_bytes = saved.size_bytes(source.state)
    disks = _disks(ctx, machine)
    await disk_snapshots.make(disks, tag)
    return tuple(disk.stem for disk in disks[1:]), saved_bytes


async def _publish(paths: MachinePaths, part: SnapshotPaths, made: Snapshot, undo: Undo) -> None:
    content = json.dumps({"format": _FORMAT, **asdict(made)}, indent=1).encode()
    with storing("keep the snapshot"):
        await asyncio.to_thread(durable.write, part.manifest, content)
        durable.sync(paths.directory)
    await asyncio.to_thread(saved.publish, part.directory, _paths(paths, made.name).directory)
    undo.pop_all()


async def _restore(ctx: Context, machine: Machine, snapshot: Snapshot) -> None:
    paths = ctx.paths.machine(machine.id)
    if machine.state is MachineState.RUNNING:
        await end(ctx, machine, force=True)
    with storing("begin the restore"):
        content = json.dumps({"name": snapshot.name}).encode()
        await asyncio.to_thread(durable.write, paths.restoring, content)
    try:
        await finish_restore(ctx, machine.id)
    except ArcboxError as error:
        detail = f"it is half restored to snapshot {snapshot.name!r}: {error.message}"
        await ctx.registry.move(machine.id, MachineState.UNKNOWN, detail=detail)
        raise


async def _remove(ctx: Context, machine: Machine, name: str) -> None:
    paths = ctx.paths.machine(machine.id)
    part = SnapshotPaths(paths.snapshots / f"{name}{_UNFINISHED}")
    await asyncio.to_thread(saved.publish, _paths(paths, name).directory, part.directory)
    await _drop(ctx, machine, part)


async def _give_up(ctx: Context, machine: Machine, part: SnapshotPaths) -> None:
    try:
        await _drop(ctx, machine, part)
    except ArcboxError as error:
        _log.warning("%s is left for the next daemon: %s", part.directory, error)


async def _drop(ctx: Context, machine: Machine, part: SnapshotPaths) -> None:
    tag = _tag(part.directory.name.removesuffix(_UNFINISHED))
    if (running := ctx.running.get(machine.id)) is not None:
        await running.vm.drop_disk_snapshots(tag)
    else:
        await disk_snapshots.drop(_disks(ctx, machine), tag)
    await asyncio.to_thread(shutil.rmtree, part.directory, ignore_errors=True)


async def _check_whole(ctx: Context, machine: Machine, snapshot: Snapshot) -> None:
    """Refuse a snapshot that cannot be restored, before anything is lost."""
    paths = ctx.paths.machine(machine.id)
    if snapshot.memory:
        await asyncio.to_thread(saved.read, SavedPaths(_paths(paths, snapshot.name).memory))
    for disk in _disks(ctx, machine, snapshot.data_disks):
        if not disk.exists() or _tag(snapshot.name) not in await disk_snapshots.tags(disk):
            raise CorruptError(
                f"snapshot {snapshot.name!r} of machine {machine.spec.name!r} is not whole: it is "
                f"not in {disk}"
            )


def _disks(ctx: Context, machine: Machine, names: Collection[str] | None = None) -> list[Path]:
    """Give the root disk, and the data disks of these names or all."""
    volumes = ctx.paths.volumes / machine.id
    if names is None:
        data = sorted(volumes.glob("*.qcow2"))
    else:
        data = [volumes / f"{name}.qcow2" for name in names]
    return [ctx.paths.machine(machine.id).disk, *data]


def _all(paths: MachinePaths) -> list[Snapshot]:
    found = []
    for directory in paths.snapshots.glob("*"):
        if not directory.name.endswith(_UNFINISHED):
            try:
                found.append(_read(SnapshotPaths(directory)))
            except CorruptError as error:
                _log.warning("%s", error)
    return sorted(found, key=lambda each: (each.created_unix_ns, each.name))


def _find(ctx: Context, machine: Machine, name: str) -> Snapshot:
    wanted = _paths(ctx.paths.machine(machine.id), _check(name))
    if not wanted.directory.is_dir():
        raise SnapshotNotFoundError(
            f"machine {machine.spec.name!r} has no snapshot {name!r}",
            hint=f"see them all with: arcbox snapshot ls {machine.spec.name}",
        )
    return _read(wanted)


def _read(source: SnapshotPaths) -> Snapshot:
    try:
        fields = json.loads(source.manifest.read_text())
        if (found := fields.pop("format")) != _FORMAT:
            raise ValueError(f"its format is {found}")  # noqa: TRY301
        return Snapshot(**{**fields, "data_disks": tuple(fields["data_disks"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"{source.manifest} describes no snapshot: {error!r}") from error


def _choose(name: str, taken: Collection[str], now_ns: int) -> str:
    if name in taken:
        raise SnapshotExistsError(
            f"a snapshot named {name!r} exists already", hint="choose another name, or remove it"
        )
    if name:
        return name
    stem = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now_ns // _NS))
    tries = (f"{stem}-{number}" if number else stem for number in range(MAX_SNAPSHOTS + 1))
    return next(each for each in tries if each not in taken)


def _check(name: str) -> str:
    try:
        return check_name(name)
    except InvalidArgumentError as error:
        message = f"{name[:80]!r} cannot be a snapshot's name"
        raise InvalidArgumentError(message, hint=error.hint) from None


def _paths(paths: MachinePaths, name: str) -> SnapshotPaths:
    return SnapshotPaths(paths.snapshots / name)


def _tag(name: str) -> str:
    # Never digits only: qemu-img would take it for the number of a snapshot.
    return f"arcbox-{name}"
