"""Ports of the host that reach into a machine, and what its guest says of them. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class PortState(StrEnum):
    """How a forward is; the values are what users see."""

    OPEN = "open"
    TAKEN = "taken"
    """Another program or machine has the host's port; it is tried again."""
    WAITING = "waiting"
    """The machine does not run."""
    FAILED = "failed"
    """The host cannot open it as it is; it is tried again now and then."""
    CLOSED = "closed"
    """It is wanted no more. Only told in an event: there is no such forward to list."""


@dataclass(frozen=True, slots=True)
class UserForward:
    """A forward that the user asked for, with every default filled in."""

    protocol: str
    host_address: str
    host_port: int
    guest_address: str
    """Empty: the machine's own."""
    guest_port: int


@dataclass(frozen=True, slots=True)
class Port:
    """A forward as it is shown."""

    machine: str
    protocol: str
    host_address: str
    host_port: int
    guest_address: str
    guest_port: int
    source: str
    """``user``, ``ssh``, or whose it is: ``container:NAME``, ``service:NAMESPACE/NAME``."""
    state: PortState
    detail: str = ""
    """Why it is not open."""


@dataclass(frozen=True, slots=True)
class PortBinding:
    """A container's published port, as its runtime says it, and where the guest reaches it."""

    protocol: str
    host_address: str
    """As it was asked for; empty or ``0.0.0.0``: any."""
    host_port: int
    container_address: str
    """Empty: any address of the guest's."""
    container_port: int


@dataclass(frozen=True, slots=True)
class PortsPublished:
    """A container's published ports; it replaces what was said of the container before."""

    container_id: str
    source: str
    bindings: tuple[PortBinding, ...]


@dataclass(frozen=True, slots=True)
class PortsWithdrawn:
    """A container has no published ports any more."""

    container_id: str


@dataclass(frozen=True, slots=True)
class Synced:
    """All that there is was told; what was not told is there no more."""


@dataclass(frozen=True, slots=True)
class RuntimeWanted:
    """Someone asked the guest for the container runtime: it waits for the disk."""


@dataclass(frozen=True, slots=True)
class KubernetesWanted:
    """Someone asked the guest for a cluster: it waits for the disks."""


GuestEvent = PortsPublished | PortsWithdrawn | Synced | RuntimeWanted | KubernetesWanted
