"""What is said between the host and an agent, as plain values. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Pong:
    """An agent's answer to a ping."""

    message: str
    version: str


@dataclass(frozen=True, slots=True)
class SystemInfo:
    """What a guest says of itself. Data, never trusted to be right or short."""

    kernel_version: str
    os_name: str
    os_version: str
    arch: str
    total_memory_bytes: int
    available_memory_bytes: int
    cpu_count: int
    load_average: tuple[float, ...]
    hostname: str
    uptime_s: int
    ip_addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SshHostKey:
    """A host key that the host made for a guest."""

    type: str
    private_key: str
    public_key: str


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a guest this machine and no other; the agent applies it before init runs."""

    machine_id: str
    hostname: str
    mac: str
    user_name: str
    user_uid: int
    authorized_keys: tuple[str, ...]
    ssh_host_keys: tuple[SshHostKey, ...]
    disk_bytes: int
    warm_up: bool = False
    """A clone's second processor is to run a command that does nothing meanwhile."""


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """One process to run in a guest."""

    argv: tuple[str, ...]
    working_dir: str = ""
    user: str = ""
    env: dict[str, str] = field(default_factory=dict)
    tty: bool = False
    rows: int = 24
    columns: int = 80
    stdin: bool = False


@dataclass(frozen=True, slots=True)
class StdinData:
    """Bytes for the process's standard input."""

    data: bytes


@dataclass(frozen=True, slots=True)
class StdinEnd:
    """The end of the process's standard input."""


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """The terminal has a new size."""

    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class ProcessSignal:
    """A signal for the process group."""

    number: int


ExecInput = StdinData | StdinEnd | TerminalSize | ProcessSignal


@dataclass(frozen=True, slots=True)
class ExecData:
    """Output of a process, in order within each stream."""

    stream: str
    """``stdout`` or ``stderr``; a terminal has only ``stdout``."""
    data: bytes


@dataclass(frozen=True, slots=True)
class ExecExit:
    """The end of a process: 128+N for signal N, 126 not executable, 127 not found."""

    code: int
    reason: str = ""


ExecOutput = ExecData | ExecExit
