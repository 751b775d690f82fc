"""What a machine is: frozen values and the table of what may follow what. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from arcboxd.errors import MachineStateError


class MachineState(StrEnum):
    """Where a machine is in its life; the values are what users see."""

    CREATING = "creating"
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    """RAM and devices are on disk, and no process runs."""
    REMOVING = "removing"
    UNKNOWN = "unknown"
    """Something is there that we could not identify: nothing is deleted, killed or started."""


_S = MachineState
TRANSITIONS = MappingProxyType(
    {
        _S.CREATING: frozenset({_S.STOPPED, _S.REMOVING}),
        _S.STOPPED: frozenset({_S.STARTING, _S.SUSPENDED, _S.REMOVING, _S.UNKNOWN}),
        _S.STARTING: frozenset({_S.RUNNING, _S.STOPPING, _S.STOPPED, _S.SUSPENDED, _S.UNKNOWN}),
        _S.RUNNING: frozenset({_S.STOPPING, _S.SUSPENDING, _S.SUSPENDED, _S.STOPPED, _S.UNKNOWN}),
        _S.STOPPING: frozenset({_S.STOPPED, _S.RUNNING, _S.UNKNOWN}),
        _S.SUSPENDING: frozenset({_S.SUSPENDED, _S.RUNNING, _S.STOPPED, _S.UNKNOWN}),
        _S.SUSPENDED: frozenset({_S.STARTING, _S.STOPPED, _S.REMOVING, _S.UNKNOWN}),
        _S.REMOVING: frozenset({_S.REMOVING}),
        _S.UNKNOWN: frozenset({_S.RUNNING, _S.SUSPENDED, _S.STOPPED, _S.STOPPING, _S.REMOVING}),
    }
)
"""Every transition that may happen; anything else is a bug or a request in the wrong state."""


def check_transition(name: str, before: MachineState, after: MachineState) -> None:
    """Refuse a transition that the table does not have.

    Raises:
        MachineStateError: The table has no such transition.
    """
    if after not in TRANSITIONS[before]:
        raise MachineStateError(f"machine {name!r} is {before} and cannot become {after}")


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process and no other: pids are reused, start times within one boot are not.

    Source: proc(5), ``/proc/sys/kernel/random/boot_id`` and field 22 of ``/proc/PID/stat``.
    """

    boot_id: str
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class DirectoryMount:
    """A directory of the host that the guest has at a place of its own."""

    host_path: str
    """Absolute, as the user wrote it; symbolic links in it are followed at each start."""
    guest_path: str
    readonly: bool = False
    slot: int = 0
    """Its place among the machine's mounts that are writable, or that are not; given to it when it
    is recorded, and kept."""


@dataclass(frozen=True, slots=True)
class NewMachine:
    """What a user asks for; 0 and the empty string stand for the daemon's defaults."""

    name: str
    cpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    distro: str = ""
    version: str = ""
    arch: str = ""
    mounts: tuple[DirectoryMount, ...] = ()
    ssh_public_key: str = ""
    kernel: str = ""
    cmdline: str = ""


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What the user asked for, every default filled in."""

    name: str
    cpus: int
    memory_bytes: int
    disk_bytes: int
    distro: str
    version: str
    arch: str
    cmdline: str = ""
    ssh_public_keys: tuple[str, ...] = ()
    mounts: tuple[DirectoryMount, ...] = ()
    kernel: str = ""
    """The user's own, by its path on the host; empty: ours."""


class Boot(StrEnum):
    """How a machine's processes came to be at its last start."""

    COLD = "cold"
    TEMPLATE = "template"
    """It went on from a template's memory; its process has fewer devices (`VmConfig.balloon`)."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as it is recorded. Changed by replacing it."""

    id: str
    spec: MachineSpec
    state: MachineState
    created_unix_ns: int
    image_key: str
    user: str
    mac: str
    machine_id: str
    """32 hexadecimal digits: the guest's /etc/machine-id."""
    ssh_port: int = 0
    """On the host's 127.0.0.1; 0 until the first start."""
    started_unix_ns: int = 0
    process: ProcessIdentity | None = None
    accelerator: str = ""
    kernel_version: str = ""
    boot: Boot | None = None
    """None until the first start."""
    boot_reason: str = ""
    """Why it booted so."""
    detail: str = ""
    """Why it last failed, or why it is unknown."""


GUEST_ADDRESS = "10.0.2.15"
GUEST_PREFIX_BITS = 24
GUEST_GATEWAY = "10.0.2.2"
GUEST_DNS = "10.0.2.3"
"""QEMU's user-mode network gives every machine the same addresses, each in a network of its own."""
