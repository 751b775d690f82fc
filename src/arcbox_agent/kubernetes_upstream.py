"""Kubernetes' own programs, with keys by kubeadm, etcd, and a containerd of its own.

Not dockerd's containerd: each new configuration of that one would be a restart, at which dockerd
misses the ends of containers, and a cluster's end would leave it with what is not its own.

Source: the components' references at kubernetes.io/docs/reference/command-line-tools-reference.
"""

# pathlib is not imported and imports come late: start-up takes long under emulation.
# ruff: noqa: PTH107, PTH110, PTH119, PTH122

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING

from arcbox_agent import files
from arcbox_agent.containerd_health import is_serving
from arcbox_agent.kubernetes_config import (
    Release,
    component_argv,
    has_coredns,
    write_configs,
)
from arcbox_agent.kubernetes_parts import READY_URL, Distribution, Part
from arcbox_agent.runtime_config import PRELUDE
from arcbox_agent.service_record import Service
from arcboxd.errors import ArcboxError

if TYPE_CHECKING:
    from arcbox_agent.kubernetes_layout import Cluster

CONTAINERD = "kubernetes-containerd"
_SOCKET = "/run/arcbox/cluster/containerd.sock"
_PKI = "/etc/kubernetes/pki"
_KEPT_KEYS = ("ca", "etcd/ca", "front-proxy-ca", "sa")
_KEYS_LAST_S = 180 * 24 * 3600
"""Half of what kubeadm makes them for."""
_WAIT_S = 180.0
_POLL_S = 0.1
_STEP_S = 300.0

_log = logging.getLogger(__name__)


class KubernetesFailedError(ArcboxError):
    """A step of bringing the cluster up failed."""


class Upstream(Distribution):
    """A cluster of one node by Kubernetes' own programs."""

    name = "upstream"
    parts = (
        Part("etcd", "etcd", "http://127.0.0.1:2381/health"),
        Part("kube-apiserver", "kube-apiserver", READY_URL),
        Part(
            "kube-controller-manager", "kube-controller-manager", "https://127.0.0.1:10257/healthz"
        ),
        Part("kube-scheduler", "kube-scheduler", "https://127.0.0.1:10259/healthz"),
        Part("containerd", CONTAINERD, _SOCKET),
        Part("kubelet", "kubelet", "http://127.0.0.1:10248/healthz"),
        Part("kube-proxy", "kube-proxy", "http://127.0.0.1:10256/healthz"),
    )
    api = "kube-apiserver"
    before_pods = ("kubelet", "kube-proxy", "kube-controller-manager", "kube-scheduler")
    after_pods = (("kube-apiserver", CONTAINERD), ("etcd",))
    holders = (CONTAINERD,)
    foreign = ("/etc/kubernetes", "/var/lib/etcd")
    paths = (
        *foreign,
        "/var/lib/kubelet",
        "/etc/cni/net.d/10-arcbox.conflist",
        "/etc/cni/net.d",
        "/etc/cni",
        "/var/lib/cni",
        "/var/log/pods",
        "/var/log/containers",
    )

    @property
    def version(self) -> str:
        """Kubernetes' own."""
        return self.layout.versions().get("kubernetes", "")

    @property
    def kubeconfig(self) -> str:
        """Made by kubeadm; since 1.29 the one of `admin` has no rights before a step of its own."""
        folder = f"{self.layout.root}/etc/kubernetes"
        strong = f"{folder}/super-admin.conf"
        return strong if os.path.exists(strong) else f"{folder}/admin.conf"

    async def start(self, cluster: Cluster) -> None:
        """Start the API server and what it needs. Keys are made anew after half of their life.

        (T) The others, started with it, keep it from the processors: with all of them at once it
        had not answered after nine minutes.
        """
        release = Release(self.version)
        write_configs(self.layout, cluster, release)
        age_s = time.time() - cluster.keys_unix_s
        has_keys = cluster.keys_unix_s and 0 <= age_s < _KEYS_LAST_S
        containerd = asyncio.ensure_future(self._start_containerd())
        try:
            if not has_keys:
                drop_leaf_keys(f"{self.layout.root}/etc/kubernetes")
                await self._kubeadm("init", "phase", "certs", "all", "--config", self._config)
            for name in ("etcd", "kube-apiserver"):
                self._begin(name, cluster, release)
            if not has_keys:
                await self._make_kubeconfigs(release)
                cluster.keys_unix_s = int(time.time())
                cluster.save(self.layout)
            await containerd
        finally:
            containerd.cancel()

    async def complete(self, cluster: Cluster) -> None:
        """Start all that asks the API server, and CoreDNS if the disk has it."""
        for name in self.before_pods:
            self._begin(name, cluster, Release(self.version))
        if not has_coredns(self.layout.images()):
            return
        await self._kubeadm("init", "phase", "addon", "coredns", "--config", self._config)

    def _begin(self, name: str, cluster: Cluster, release: Release) -> None:
        argv = component_argv(name, self.layout, cluster, release)
        log = self.layout.log(name)
        self.supervisor.start(Service(name, argv, self.environment(), log, PRELUDE))

    async def _start_containerd(self) -> None:
        """Start containerd, and give it the images of the disk."""
        socket = self.layout.root + _SOCKET
        runtime = self.layout.runtime
        argv = [f"{runtime.bin}/containerd", "--config", f"{self.layout.run}/containerd.toml"]
        log = self.layout.log(CONTAINERD)
        self.supervisor.start(Service(CONTAINERD, argv, self.environment(), log, PRELUDE))
        deadline = asyncio.get_running_loop().time() + _WAIT_S
        while not await is_serving(socket, _WAIT_S):
            if asyncio.get_running_loop().time() > deadline:
                raise KubernetesFailedError("containerd does not answer.")
            await asyncio.sleep(_POLL_S)
        for image in self.layout.images():
            argv = ["--address", socket, "--namespace", "k8s.io", "images", "import", image]
            await self._step(f"{runtime.bin}/ctr", *argv)

    async def _make_kubeconfigs(self, release: Release) -> None:
        """Make the components' and the administrator's, which the API server does not need.

        kubeadm of 1.20 makes RSA keys for these, whatever it was told.
        """
        text, _ = await asyncio.gather(
            self._kubeadm(*release.kubeconfig_command, "--client-name", "system:kube-proxy",
                          "--config", self._config),
            self._kubeadm("init", "phase", "kubeconfig", "all", "--config", self._config),
        )  # fmt: skip
        # The file's end is what counts: the command may write warnings before it.
        path = f"{self.layout.root}/etc/kubernetes/kube-proxy.conf"
        files.write(path, text[text.index("apiVersion:") :], mode=0o600)

    @property
    def _config(self) -> str:
        return f"{self.layout.run}/kubeadm.yaml"

    async def _kubeadm(self, *words: str) -> str:
        return await self._step(f"{self.layout.bin}/kubeadm", *words)

    async def _step(self, program: str, *words: str) -> str:
        try:
            async with asyncio.timeout(_STEP_S):
                code, text = await self.system.run(program, *words)
        except TimeoutError:
            raise KubernetesFailedError(
                f"{os.path.basename(program)} did not end within {_STEP_S:g} s."
            ) from None
        if code != 0:
            raise KubernetesFailedError(
                f"{os.path.basename(program)} {' '.join(words[:4])} ended with {code}:"
                f" {text.strip()[-600:]}"
            )
        return text


def drop_leaf_keys(folder: str) -> None:
    """Remove keys and kubeconfigs below /etc/kubernetes, but not what they are signed with.

    Raises:
        OSError: One cannot be removed.
    """
    for place, _, names in os.walk(folder):
        for name in names:
            path = f"{place}/{name}"
            stem = os.path.splitext(os.path.relpath(path, f"{folder}/pki"))[0]
            if (name.endswith(".conf") and place == folder) or (
                path.endswith((".crt", ".key")) and stem not in _KEPT_KEYS
            ):
                os.remove(path)
