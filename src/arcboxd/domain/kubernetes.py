"""What is said of a machine's Kubernetes cluster, as plain values. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from arcboxd.domain.runtime import ServiceStatus


@dataclass(frozen=True, slots=True)
class KubernetesStatus:
    """How a cluster is, asked anew each time."""

    running: bool
    api_ready: bool
    endpoint: str
    """Where its API server is reached; empty: not known."""
    detail: str
    services: tuple[ServiceStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class KubernetesStopped:
    """How it went to stop a cluster."""

    stopped: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Kubeconfig:
    """What reaches a cluster from the host."""

    text: str
    """YAML."""
    context: str
    endpoint: str
