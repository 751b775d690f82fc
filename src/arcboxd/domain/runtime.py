"""What is said of a machine's container runtime, as plain values. No I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RuntimeAnswer:
    """How it went to have the runtime ready."""

    ready: bool
    endpoint: str
    """Where it listens in the guest."""
    message: str
    status: str
    """``started``, ``reused`` or ``failed``."""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One program of the runtime."""

    name: str
    status: str
    """``ready``, ``not_ready`` or ``error``."""
    detail: str


@dataclass(frozen=True, slots=True)
class RuntimeStatus:
    """How the runtime is, asked anew each time."""

    containerd_ready: bool
    docker_ready: bool
    endpoint: str
    detail: str
    services: tuple[ServiceStatus, ...]


FAILED = "failed"
STARTED = "started"
NOT_READY = "not_ready"
SERVICES = ("containerd", "dockerd", "runc")


def not_running(detail: str) -> RuntimeStatus:
    """Give the status of the runtime in a machine that does not run."""
    services = tuple(ServiceStatus(name, NOT_READY, detail) for name in SERVICES)
    return RuntimeStatus(
        containerd_ready=False, docker_ready=False, endpoint="", detail=detail, services=services
    )
