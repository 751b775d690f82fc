"""What the client hands out beside the domain's values: frozen, in the units their names say."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory of the host that a guest has; ``state`` is mounted, waiting or failed."""

    host_path: str
    guest_path: str
    readonly: bool = False
    filesystem: str = ""
    state: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class NewTemplate:
    """What to boot once for later machines; 0 and "" leave the choice to the daemon."""

    cpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    distro: str = ""
    version: str = ""
    arch: str = ""
    runtime: bool = False
    """With containerd and dockerd running."""


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
    boot_reason: str
    docker_socket: str


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
class NewPort:
    """What to forward; 0 and "" leave the choice to the daemon."""

    guest_port: int
    host_port: int = 0
    host_address: str = ""
    guest_address: str = ""
    protocol: str = "tcp"


@dataclass(frozen=True, slots=True)
class Port:
    """A forward; ``state`` is open, taken, waiting or failed, and in an event closed."""

    machine: str
    protocol: str
    host_address: str
    host_port: int
    guest_address: str
    guest_port: int
    source: str
    state: str
    detail: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A machine as it once was; ``saved_bytes`` is of its memory, 0 when only disks are kept."""

    name: str
    created: datetime
    memory: bool
    saved_bytes: int


@dataclass(frozen=True, slots=True)
class Template:
    """An image booted once. ``current`` is False when nothing can start from it any more."""

    key: str
    distro: str
    version: str
    arch: str
    cpus: int
    memory_bytes: int
    disk_bytes: int
    allocated_bytes: int
    machines: int
    staged: int
    created: datetime
    current: bool
    runtime: bool


@dataclass(frozen=True, slots=True)
class NewImage:
    """A file to make an image of; "" leaves the choice to the daemon."""

    path: Path
    name: str
    version: str = ""
    arch: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """What machines are made of; ``machines`` are the names of those that rest on it."""

    key: str
    source: str
    distro: str
    version: str
    arch: str
    init: str
    apparent_bytes: int
    allocated_bytes: int
    created: datetime
    machines: tuple[str, ...]
    templates: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """The templates or images that were removed, and the room that this gave back."""

    keys: tuple[str, ...]
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class PrunedImages(Pruned):
    """The images that were removed, with what only earlier versions booted from."""

    boot_files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BootFiles:
    """What machines boot from; ``changed`` by the call that gave this."""

    kernel_version: str
    changed: bool


@dataclass(frozen=True, slots=True)
class MachineUsage:
    """What a machine's process uses of the host; ``guest_used_bytes`` if the guest tells."""

    id: str
    name: str
    own_bytes: int
    shared_bytes: int
    swapped_bytes: int
    memory_bytes: int
    guest_used_bytes: int | None
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What machines use of the host's memory and processors."""

    machines: tuple[MachineUsage, ...]
    host_memory_bytes: int
    host_available_bytes: int


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


@dataclass(frozen=True, slots=True)
class PortEvent:
    """A forward is in another state."""

    subject: str
    port: Port


Event = StateEvent | ProgressEvent | PortEvent
