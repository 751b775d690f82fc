"""What the use cases need of a hypervisor, and nothing of QEMU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from arcboxd.domain.image import BootAssets
from arcboxd.domain.machine import ProcessIdentity
from arcboxd.paths import MachinePaths


@dataclass(frozen=True, slots=True)
class Forward:
    """A port of the host that reaches a port of the guest."""

    protocol: str
    """``tcp`` or ``udp``."""
    host_address: str
    host_port: int
    guest_port: int


@dataclass(frozen=True, slots=True)
class DataDisk:
    """A disk beside the root; the guest finds it as ``/dev/disk/by-id/virtio-NAME``."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """A file that is a machine's RAM. Shared: writes go to it; else it is mapped copy-on-write."""

    path: Path
    shared: bool


PageRanges = Sequence[tuple[int, int]]
"""Offsets in RAM and lengths, in bytes, both of whole pages."""


@dataclass(frozen=True, slots=True)
class SavedState:
    """What `Vm.save` wrote, for `Hypervisor.launch` to go on from."""

    path: Path
    memory_in_file: bool
    """The RAM is not in it, but in the machine's `MemoryFile`."""
    machine_type: str = ""
    """The hypervisor's exact name of the board: only the same one can go on from this."""
    hot_pages: PageRanges = ()
    """What of the RAM in a file is written to at once by whoever goes on from this."""


@dataclass(frozen=True, slots=True)
class VmConfig:
    """All that one virtual machine is made of."""

    machine_id: str
    name: str
    uuid: str
    arch: str
    cpus: int
    memory_bytes: int
    mac: str
    paths: MachinePaths
    assets: BootAssets
    cmdline: str = ""
    forwards: tuple[Forward, ...] = ()
    data_disks: tuple[DataDisk, ...] = ()
    memory_file: MemoryFile | None = None
    """None: anonymous memory."""
    machine_type: str = ""
    """The hypervisor's exact name of the board, as in `SavedState`; empty: the newest."""
    balloon: bool = True
    """Free pages of the guest go back to the host. Never with a `MemoryFile`: giving a page back
    punches a hole into that file, under the feet of every other machine that maps it."""
    background: bool = False
    """Run it when nothing else wants the processors."""
    runtime_disk: Path | None = None
    """The container runtime's disk; it may be plugged in later instead: `Vm.plug_runtime`."""
    kubernetes_disk: Path | None = None
    """The disk with Kubernetes, likewise."""
    pluggable: bool = True
    """Devices can be plugged in while it runs. False for states saved by a version without that."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a running machine was launched with, as its process tells it."""

    machine_type: str
    kernel: Path
    initramfs: Path
    modules_disk: Path
    agent_disk: Path
    data_disks: tuple[str, ...]
    """Their names, in the guest's order."""
    balloon: bool
    runtime_disk: Path | None = None
    kubernetes_disk: Path | None = None
    pluggable: bool = True


SHARE_SLOTS = 12
"""Directories that can be plugged into a machine at a time, of each kind."""


@dataclass(frozen=True, slots=True, order=True)
class ShareSlot:
    """One of the places for a directory of the host, each of them either writable or not."""

    number: int
    """Below `SHARE_SLOTS`."""
    readonly: bool

    @property
    def tag(self) -> str:
        """Name the share as the guest finds it."""
        return f"arcbox-{'ro' if self.readonly else 'rw'}{self.number}"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """How guest code is run, and why so."""

    name: str
    """``kvm`` or ``tcg``."""
    reason: str
    timeout_scale: float
    """What a timeout chosen for kvm is multiplied by."""


class Vm(Protocol):
    """A running virtual machine: a handle, never its owner; dropping it stops nothing."""

    @property
    def process(self) -> ProcessIdentity:
        """Identify the process."""
        ...

    async def wait_exit(self) -> None:
        """Return once the process is gone. May be awaited by many, any number of times."""
        ...

    async def allow_reset(self) -> None:
        """From now on a guest's reboot restarts it; before, a reboot or a panic ends the process.

        Raises:
            HypervisorError: The monitor does not answer.
        """
        ...

    async def powerdown(self) -> None:
        """Press the ACPI power button.

        Raises:
            HypervisorError: The monitor does not answer.
        """
        ...

    async def pause(self) -> None:
        """Stop the virtual processors; the disks are settled when this returns.

        Raises:
            HypervisorError: The monitor does not answer.
        """
        ...

    async def resume(self) -> None:
        """Let the virtual processors go on, whatever halted them; a save under way is given up.

        Raises:
            HypervisorError: The monitor does not answer.
        """
        ...

    async def hardware(self) -> Hardware:
        """Tell what it was launched with, which a later version of ours may not know otherwise.

        Raises:
            HypervisorError: The monitor does not answer.
        """
        ...

    async def save(self, path: Path, *, memory_in_file: bool, timeout_s: float) -> SavedState:
        """Write the state of a paused machine to a file, which is on the disk when this returns.

        Raises:
            HypervisorError: It cannot be saved; it is paused as before.
            NoRoomError: The file's disk is full; it is paused as before.
            TooLateError: It took longer than ``timeout_s`` seconds.
        """
        ...

    async def snapshot_disks(self, tag: str) -> None:
        """Take a snapshot of all its disks, in their files, at one instant; or of none.

        Raises:
            HypervisorError: It was refused, or the monitor does not answer.
        """
        ...

    async def drop_disk_snapshots(self, tag: str) -> None:
        """Remove the snapshots of that name from its disks; those without one are left alone.

        Raises:
            HypervisorError: It was refused, or the monitor does not answer.
        """
        ...

    async def own_pages(self) -> PageRanges:
        """Tell which pages of a RAM that is mapped copy-on-write it has written to.

        Empty if that cannot be known, or its RAM is not mapped so.
        """
        ...

    async def resize_disk(self, size_bytes: int) -> None:
        """Grow the root disk; the guest sees it at once.

        Raises:
            HypervisorError: It was refused, or the monitor does not answer.
        """
        ...

    async def plug_runtime(self, disk: Path) -> None:
        """Plug the container runtime's disk in, as serial ``runtime``. Idempotent.

        Raises:
            HypervisorError: It was refused, or the monitor does not answer.
        """
        ...

    async def plug_kubernetes(self, disk: Path) -> None:
        """Plug the disk with Kubernetes in, as serial ``kubernetes``. Idempotent.

        Raises:
            HypervisorError: It was refused, or the monitor does not answer.
        """
        ...

    async def plug_share(self, slot: ShareSlot, directory: Path) -> None:
        """Plug a directory of the host in, for the guest to mount by the slot's tag as 9p.

        A read-only slot is so on the host's side, whatever the guest does. Symbolic links in the
        directory's own path are followed now, and never again.

        Raises:
            HypervisorError: It was refused, or the monitor does not answer.
            MachineStateError: The machine is of a version that could not do this.
        """
        ...

    async def unplug_share(self, slot: ShareSlot, timeout_s: float) -> None:
        """Take a share out, which the guest has unmounted before. Idempotent.

        Raises:
            HypervisorError: It was refused, or the monitor does not answer.
            TooLateError: The guest did not let go of it in time.
        """
        ...

    async def shares(self) -> tuple[ShareSlot, ...]:
        """Tell which slots are taken, as the hypervisor has it.

        Raises:
            HypervisorError: The monitor does not answer.
        """
        ...

    def rehome(self, paths: MachinePaths) -> None:
        """Move the files of its process to another directory of the same filesystem.

        Raises:
            OSError: One cannot be moved.
        """
        ...

    async def kill(self) -> None:
        """SIGKILL, and wait until the process is gone. Idempotent."""
        ...

    async def forwards(self) -> tuple[Forward, ...]:
        """Tell the forwards that are in force, as the hypervisor has them.

        Raises:
            HypervisorError: The monitor does not answer.
        """
        ...

    async def add_forward(self, forward: Forward) -> None:
        """Open a forward.

        Raises:
            NoRoomError: The host's port is taken.
            HypervisorError: The monitor does not answer.
        """
        ...

    async def remove_forward(self, forward: Forward) -> None:
        """Close a forward; one that does not exist is no error.

        Raises:
            HypervisorError: The monitor does not answer.
        """
        ...

    async def detach(self) -> None:
        """Drop every connection to it, and leave it running. Idempotent."""
        ...


class Hypervisor(Protocol):
    """Launches machines, and finds those that an earlier daemon launched."""

    @property
    def accelerator(self) -> Accelerator:
        """Tell how code of the host's architecture is run."""
        ...

    def accelerator_for(self, arch: str) -> Accelerator:
        """Tell how code of an architecture is run, by the kernel's name of it."""
        ...

    def check(self, arch: str) -> None:
        """See that machines of an architecture can be run here at all.

        Raises:
            MissingToolError: The hypervisor for it is not installed.
            UnsupportedError: There is none for it.
        """
        ...

    async def fingerprint(self, config: VmConfig) -> str:
        """Digest all that a saved state depends on: board, devices, processor, boot files, program.

        Not the machine's own name, addresses, files and disk sizes. A state fits only a machine
        with the same fingerprint.

        Raises:
            MissingToolError: The hypervisor is not installed.
        """
        ...

    async def launch(self, config: VmConfig, state: SavedState | None = None) -> Vm:
        """Start a virtual machine; it outlives this process.

        With a saved state it is paused where that was saved, and `Vm.resume` lets it go on.

        Raises:
            HypervisorError: It ended at once or never answered; nothing of it is left.
            NoRoomError: A forward's port is taken.
        """
        ...

    async def adopt(self, config: VmConfig, process: ProcessIdentity) -> Vm | None:
        """Take over a machine that runs; None when that very process is gone for certain.

        Raises:
            HypervisorError: The process is there, but its monitor does not answer.
        """
        ...
