"""k3s: all of Kubernetes in one program, with a containerd of its own.

Source: docs.k3s.io/cli/server.
"""

# pathlib is not imported: start-up takes long under emulation.

from __future__ import annotations

from typing import TYPE_CHECKING

from arcbox_agent.kubernetes_layout import ADDRESS, API_PORT
from arcbox_agent.kubernetes_parts import READY_URL, Distribution, Part
from arcbox_agent.runtime_config import PRELUDE
from arcbox_agent.service_record import Service

if TYPE_CHECKING:
    from arcbox_agent.kubernetes_layout import Cluster

CONTAINERD = "/run/k3s/containerd/containerd.sock"


class K3s(Distribution):
    """A cluster by k3s, without its load balancers: the host forwards to services' node ports."""

    name = "k3s"
    parts = (
        Part("k3s", "k3s", "https://127.0.0.1:6443/ping"),
        Part("kube-apiserver", "k3s", READY_URL),
        Part("kubelet", "k3s", "http://127.0.0.1:10248/healthz"),
        Part("containerd", "k3s", CONTAINERD),
    )
    api = "kube-apiserver"
    before_pods = ("k3s",)
    after_pods = ()
    holders = ("k3s",)
    foreign = ("/etc/rancher", "/var/lib/rancher")
    paths = (
        *foreign,
        "/run/k3s",
        "/run/flannel",
        "/var/lib/kubelet",
        "/var/lib/cni",
        "/var/log/pods",
        "/var/log/containers",
        "/usr/libexec/kubernetes",  # for volume plugins, where no option says otherwise
    )

    @property
    def version(self) -> str:
        """k3s' own."""
        return self.layout.versions().get("k3s", "")

    @property
    def kubeconfig(self) -> str:
        """Written by k3s."""
        return f"{self.layout.root}/etc/rancher/k3s/k3s.yaml"

    async def start(self, cluster: Cluster) -> None:
        """Start it; it makes its keys by itself."""
        self.supervisor.start(
            Service("k3s", self.argv(cluster), self.environment(), self.layout.log("k3s"), PRELUDE)
        )

    async def complete(self, cluster: Cluster) -> None:
        """Nothing: it deploys its parts by itself."""

    def argv(self, cluster: Cluster) -> list[str]:
        """Give the command line."""
        options = {
            "node-name": cluster.node,
            "node-ip": ADDRESS,
            "advertise-address": ADDRESS,
            "https-listen-port": str(API_PORT),
            "tls-san": "127.0.0.1",
            "write-kubeconfig-mode": "0600",
            # One node needs no tunnel to others, and this no kernel module.
            "flannel-backend": "host-gw",
            "disable": "servicelb,traefik",
            # What anybody may ask then is for health and version, as in any other Kubernetes.
            "kube-apiserver-arg": "anonymous-auth=true",
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        return [f"{self.layout.bin}/k3s", "server", *words]
