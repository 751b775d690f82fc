"""A machine's RAM and devices on disk, with all that a process needs to go on from there.

A saved memory is a directory: the state as the hypervisor wrote it, second names of the files that
the machine booted from (its guest has them mounted, and a later version of ours makes others), and
a manifest, which is written last. It appears whole, by a rename, and nothing in it ever changes.

A machine's own is ``suspend``. While that name is there, the guest has not run on since: the name
is taken away, durably, before it goes on, for from then on the memory fits the disks no more.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from arcboxd import aio, durable
from arcboxd.domain.image import BootAssets, ProgressFn
from arcboxd.domain.machine import Boot, Machine
from arcboxd.durable import storing
from arcboxd.errors import CorruptError, NoRoomError
from arcboxd.hypervisor.base import DataDisk, SavedState, Vm, VmConfig
from arcboxd.machines import disks
from arcboxd.machines.context import Context
from arcboxd.paths import MachinePaths, SavedPaths
from arcboxd.settings import MIB

_FORMAT = 1
_SAVE_S = 60.0
_SLOWEST_BYTES_S = 16 * MIB
_PROGRESS_S = 0.5
_KIB = 1024


@dataclass(frozen=True, slots=True)
class Saved:
    """A saved memory, as its manifest tells it."""

    machine_type: str
    accelerator: str
    kernel_version: str
    arch: str
    cpus: int
    memory_bytes: int
    mac: str
    uuid: str
    cmdline: str
    balloon: bool
    boot: Boot
    boot_reason: str
    data_disks: tuple[str, ...]
    """Their names, in the guest's order."""
    saved_unix_ns: int
    files: dict[str, int]
    """Each file's size."""
    pluggable: bool = False
    """Not in manifests of versions before it."""

    @property
    def state_bytes(self) -> int:
        """Tell the size of what had to be written."""
        return self.files["state"]


async def save(ctx: Context, machine: Machine, vm: Vm, target: SavedPaths) -> Saved:
    """Write the memory of a paused machine to a new directory, all of it on the disk at the end.

    What is left there when this fails or is cancelled is the caller's to delete.

    Raises:
        HypervisorError: It was refused, or the monitor does not answer.
        NoRoomError: The disk is full, or will be.
        StoreError: Something else cannot be written, or what the machine booted from is gone.
        TooLateError: It took too long.
    """
    report = ctx.reporter(machine)
    report("saving the memory", 0, 0)
    hardware = await vm.hardware()
    memory_bytes = machine.spec.memory_bytes // MIB * MIB
    await asyncio.to_thread(shutil.rmtree, target.directory, ignore_errors=True)
    with storing("save the memory"):
        target.directory.mkdir(mode=0o700, parents=True)
        _check_room(target.directory, vm.process.pid, memory_bytes)
    disks.share(hardware.kernel, target.kernel)
    disks.share(hardware.initramfs, target.initramfs)
    disks.share(hardware.modules_disk, target.modules_disk)
    disks.share(hardware.agent_disk, target.agent_disk)
    if hardware.runtime_disk is not None:
        disks.share(hardware.runtime_disk, target.runtime_disk)
    if hardware.kubernetes_disk is not None:
        disks.share(hardware.kubernetes_disk, target.kubernetes_disk)
    watcher = aio.spawn(_watch(target.state, report), name=f"progress of {machine.spec.name}")
    try:
        timeout_s = _SAVE_S + memory_bytes / _SLOWEST_BYTES_S
        await vm.save(target.state, memory_in_file=False, timeout_s=timeout_s)
    finally:
        await aio.cancel(watcher)
    with storing("save the memory"):
        saved = Saved(
            machine_type=hardware.machine_type,
            accelerator=machine.accelerator,
            kernel_version=machine.kernel_version,
            arch=machine.spec.arch,
            cpus=machine.spec.cpus,
            memory_bytes=memory_bytes,
            mac=machine.mac,
            uuid=str(uuid.UUID(machine.machine_id)),
            cmdline=machine.spec.cmdline,
            balloon=hardware.balloon,
            boot=machine.boot or Boot.COLD,
            boot_reason=machine.boot_reason,
            data_disks=hardware.data_disks,
            saved_unix_ns=ctx.now_ns(),
            files={path.name: path.stat().st_size for path in target.directory.iterdir()},
            pluggable=hardware.pluggable,
        )
        content = json.dumps({"format": _FORMAT, **asdict(saved)}, indent=1).encode()
        await asyncio.to_thread(durable.write, target.manifest, content)
    report("saving the memory", saved.state_bytes, saved.state_bytes)
    return saved


def read(source: SavedPaths) -> Saved:
    """Read a saved memory's manifest, and check that every file is there and whole.

    Raises:
        CorruptError: It is not.
    """
    try:
        fields = json.loads(source.manifest.read_text())
        if (found := fields.pop("format")) != _FORMAT:
            raise ValueError(f"its format is {found}")  # noqa: TRY301
        fields |= {"data_disks": tuple(fields["data_disks"]), "boot": Boot(fields["boot"])}
        saved = Saved(**fields)
        for name, size in saved.files.items():
            if (found := (source.directory / name).stat().st_size) != size:
                raise ValueError(f"{name} has {found} bytes and not {size}")  # noqa: TRY301
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(
            f"the saved memory in {source.directory} cannot be used: {error!r}"
        ) from error
    return saved


def state(source: SavedPaths, saved: Saved) -> SavedState:
    """Give what a launch goes on from."""
    return SavedState(source.state, memory_in_file=False, machine_type=saved.machine_type)


def vm_config(ctx: Context, machine: Machine, saved: Saved, boot: SavedPaths) -> VmConfig:
    """Give all that the process is made of that goes on from a saved memory.

    Args:
        ctx: What the machine lives in.
        machine: The machine.
        saved: The memory's manifest.
        boot: Where the boot files stay for as long as the process runs.
    """
    volumes = ctx.paths.volumes / machine.id
    return VmConfig(
        machine_id=machine.id,
        name=machine.spec.name,
        uuid=saved.uuid,
        arch=saved.arch,
        cpus=saved.cpus,
        memory_bytes=saved.memory_bytes,
        mac=saved.mac,
        paths=ctx.paths.machine(machine.id),
        assets=BootAssets(
            "",
            boot.kernel,
            boot.initramfs,
            boot.modules_disk,
            boot.agent_disk,
            saved.kernel_version,
        ),
        cmdline=saved.cmdline,
        data_disks=tuple(DataDisk(name, volumes / f"{name}.qcow2") for name in saved.data_disks),
        machine_type=saved.machine_type,
        balloon=saved.balloon,
        runtime_disk=boot.runtime_disk if boot.runtime_disk.name in saved.files else None,
        kubernetes_disk=boot.kubernetes_disk if boot.kubernetes_disk.name in saved.files else None,
        pluggable=saved.pluggable,
    )


def keep_boot_files(source: SavedPaths, paths: MachinePaths) -> SavedPaths:
    """Give the boot files names of their own, which stay when the saved memory is used up.

    Raises:
        StoreError: They cannot be made.
    """
    boot = SavedPaths(paths.boot)
    with storing("keep the boot files"):
        shutil.rmtree(boot.directory, ignore_errors=True)
        boot.directory.mkdir(mode=0o700)
    disks.share(source.kernel, boot.kernel)
    disks.share(source.initramfs, boot.initramfs)
    disks.share(source.modules_disk, boot.modules_disk)
    disks.share(source.agent_disk, boot.agent_disk)
    if source.runtime_disk.exists():
        disks.share(source.runtime_disk, boot.runtime_disk)
    if source.kubernetes_disk.exists():
        disks.share(source.kubernetes_disk, boot.kubernetes_disk)
    return boot


def link(source: SavedPaths, target: SavedPaths) -> None:
    """Give a saved memory a second name, a directory of its own; both are whole.

    Raises:
        CorruptError: It is not whole.
        StoreError: The names cannot be made.
    """
    names = (*read(source).files, source.manifest.name)
    with storing("link the saved memory"):
        shutil.rmtree(target.directory, ignore_errors=True)
        target.directory.mkdir(mode=0o700, parents=True)
        for name in names:
            os.link(source.directory / name, target.directory / name, follow_symlinks=False)
        durable.sync(target.directory)


def publish(new: Path, final: Path) -> None:
    """Give a finished directory its name, durably.

    Raises:
        StoreError: It cannot be renamed.
    """
    with storing(f"keep {final}"):
        durable.rename(new, final)


def size_bytes(file: Path) -> int:
    """Tell a file's size; 0 if there is none."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def use_up(paths: MachinePaths) -> None:
    """Take a machine's saved memory its name, durably, before its guest goes on. Idempotent.

    Raises:
        StoreError: It is as it was.
    """
    with storing("use the saved memory"):
        shutil.rmtree(paths.suspend_used, ignore_errors=True)
        with suppress(FileNotFoundError):
            durable.rename(paths.suspended, paths.suspend_used)


def discard(paths: MachinePaths) -> None:
    """Delete a machine's saved memory, and what is left of an unfinished one. Idempotent.

    Raises:
        StoreError: It is there still.
    """
    use_up(paths)
    sweep(paths)


def clear(paths: MachinePaths) -> None:
    """Delete all that a stopped machine could go on from. Idempotent.

    Raises:
        StoreError: It is there still.
    """
    discard(paths)
    shutil.rmtree(paths.boot, ignore_errors=True)


def sweep(paths: MachinePaths) -> None:
    """Delete what is no saved memory yet, or no more. Idempotent; what fails is left."""
    for directory in (paths.suspending, paths.suspend_used):
        shutil.rmtree(directory, ignore_errors=True)


def left(paths: MachinePaths) -> bool:
    """Tell whether a stopped machine may have something that a crash has left."""
    own = (paths.suspended, paths.suspending, paths.suspend_used, paths.boot)
    return any(path.exists() for path in (*own, paths.snapshots, paths.restoring))


def _check_room(directory: Path, pid: int, memory_bytes: int) -> None:
    """Refuse to fill a disk that other machines write to: QEMU halts them when it is full."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = sum(int(kib) * _KIB for kib in re.findall(r"Vm(?:RSS|Swap):\s+(\d+) kB", status))
    needed = min(resident, memory_bytes)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise NoRoomError(
            f"the memory takes up to {needed >> 20} MiB, and {directory.parent} has room for "
            f"{free >> 20} MiB",
            hint="make room on that filesystem, and try again",
        )


async def _watch(file: Path, report: ProgressFn) -> None:
    """Tell how much of a file is written; of how much is not known, for empty pages take none."""
    while True:
        await asyncio.sleep(_PROGRESS_S)
        report("saving the memory", size_bytes(file), 0)
