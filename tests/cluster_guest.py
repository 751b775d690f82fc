"""A guest's Kubernetes cluster that is a few values of a test."""

from __future__ import annotations

from dataclasses import dataclass, field

from arcboxd.domain.kubernetes import KubernetesStatus, KubernetesStopped
from arcboxd.domain.runtime import ServiceStatus
from arcboxd.errors import UnsupportedError


@dataclass
class Cluster:
    """What the agents of a world say of Kubernetes, and what they were asked."""

    supported: bool = False
    text: str = ""
    running: bool = False
    asked: list[str] = field(default_factory=list)
    addresses: dict[str, tuple[str, str]] = field(default_factory=dict)

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if not self.supported:
            raise UnsupportedError("This version of the agent cannot run a Kubernetes cluster.")

    def start(self) -> KubernetesStatus:
        self._ask("start")
        self.running = True
        return KubernetesStatus(True, False, "https://10.0.2.15:6443", "it begins")

    def stop(self) -> KubernetesStopped:
        self._ask("stop")
        self.running = False
        return KubernetesStopped(True, "")

    def delete(self) -> str:
        self._ask("delete")
        self.running = False
        return "all is gone"

    def status(self) -> KubernetesStatus:
        self._ask("status")
        services = (ServiceStatus("k3s", "ready" if self.running else "not_ready", ""),)
        return KubernetesStatus(self.running, self.running, "https://evil.example", "", services)

    def kubeconfig(self) -> str:
        self._ask("kubeconfig")
        return self.text
