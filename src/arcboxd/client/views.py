"""What the client hands out beside the domain's values: frozen, in the units their names say."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory of the host that the guest sees."""

    host_path: str
    guest_path: str
    readonly: bool = False


@dataclass(frozen=True, slots=True)
class NewMachine:
    """What to create; 0 and "" leave the choice to the daemon."""

    name: str
    cpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    distro: str = ""
    version: str = ""
    arch: str = ""
    mounts: tuple[Mount, ...] = ()
    ssh_public_key: str = ""
    kernel: str = ""
    cmdline: str = ""


@dataclass(frozen=True, slots=True)
class MachineSummary:
    """A line of a list. ``state`` is text, since a newer daemon may know states that we do not."""

    id: str
    name: str
    state: str
    cpus: int
    memory_bytes: int
    disk_bytes: int
    address: str
    created: datetime


@dataclass(frozen=True, slots=True)
class MachineExtra:
    """What our daemon tells of a machine beyond the published protocol."""

    accelerator: str
    detail: str
    pid: int
    directory: str
    console_log: str
    agent_socket: str
    ssh_port: int
    disk_allocated_bytes: int
    boot: str


@dataclass(frozen=True, slots=True)
class MachineDetails:
    """All that is known of one machine; ``extra`` is None when the daemon has no such extension."""

    id: str
    name: str
    state: str
    cpus: int
    memory_bytes: int
    arch: str
    distro: str
    version: str
    kernel: str
    disk_bytes: int
    disk_format: str
    disk_path: str
    address: str
    gateway: str
    mac_address: str
    dns_servers: tuple[str, ...]
    created: datetime | None
    started: datetime | None
    mounts: tuple[Mount, ...]
    extra: MachineExtra | None


@dataclass(frozen=True, slots=True)
class SshInfo:
    """How ssh reaches a machine; ``command`` is ready to paste into a shell."""

    host: str
    port: int
    user: str
    identity_file: str
    command: str


@dataclass(frozen=True, slots=True)
class DaemonInfo:
    """What the daemon says of itself."""

    version: str
    pid: int
    home: Path
    accelerator: str
    accelerator_reason: str
    started: datetime
    machines: int
    running: int


@dataclass(frozen=True, slots=True)
class StateEvent:
    """A machine has a new state."""

    subject: str
    state: str
    detail: str


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """A step of a long operation went on; ``total`` is 0 when nobody knows it."""

    subject: str
    step: str
    done: int
    total: int
    finished: bool


Event = StateEvent | ProgressEvent
