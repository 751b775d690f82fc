"""Kubernetes: how long a new cluster takes, and the memory of one that does nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from arcboxd.client.client import Client
from arcboxd.domain.machine import NewMachine
from arcboxd.settings import MIB
from bench.figures import Figure, NotAvailableError
from bench.host import CPUS, Host
from bench.machines import output_of
from tests.vm.kubernetes_client import BUNDLE, Kubectl, deployment, image_archive, pin_bundle

MEMORY_BYTES = 2048 * MIB
NAME = "kube"
_WAIT_S = 1800.0


def run(host: Host) -> list[Figure]:
    """Bring a cluster up once, with the bundle that lies beside the repository."""
    if not BUNDLE.exists():
        raise NotAvailableError(f"there is no {BUNDLE}")
    floor = (host.floor.s(),)
    pin_bundle(host.paths.home)
    with host.daemon() as client, tempfile.TemporaryDirectory(prefix="abx-") as folder:
        client.create(NewMachine(name=NAME, cpus=CPUS, memory_bytes=MEMORY_BYTES))
        client.start(NAME)
        used_before = _used_mib(client)
        # What is built only once is built before.
        client.start_kubernetes(NAME)
        client.delete_kubernetes(NAME)
        began = time.perf_counter()
        while not client.start_kubernetes(NAME).api_ready:
            _in_time(began)
        api_s = time.perf_counter() - began
        kubeconfig = Path(folder, "config")
        kubeconfig.write_text(client.kubeconfig(NAME).text)
        kubectl = Kubectl.of(kubeconfig)
        while b" Ready" not in kubectl.run("get", "nodes", "--no-headers").stdout:
            _in_time(began)
            time.sleep(1)
        node_s = time.perf_counter() - began
        pod_s = _first_pod(host.paths.home, kubectl, Path(folder), began)
        kubectl("delete", "deployment", "web")
        idle_mib = _used_mib(client) - used_before
        client.remove(NAME, force=True)
    return [
        Figure("api", "a new cluster, until its API server is ready", "s", (api_s,), floor),
        Figure("node", "the same, until its node is ready", "s", (node_s,), floor),
        Figure("pod", "the same, until its first pod runs", "s", (pod_s,), floor),
        Figure("memory", "what an idle cluster uses in the guest", "MiB", (idle_mib,)),
    ]


def _first_pod(home: Path, kubectl: Kubectl, folder: Path, began: float) -> float:
    """Load an image and run a pod of it; give when it ran."""
    with image_archive(folder / "image").open("rb") as archive:
        argv = [str(Path(sys.executable).parent / "arcbox"), "k8s", "load", NAME]
        env = {**os.environ, "ARCBOX_HOME": str(home)}
        subprocess.run(argv, stdin=archive, env=env, check=True, capture_output=True)
    kubectl.apply(deployment("web", 1))
    while True:
        pods = json.loads(kubectl("get", "pods", "-o", "json"))["items"]
        if any(pod["status"].get("phase") == "Running" for pod in pods):
            return time.perf_counter() - began
        _in_time(began)
        time.sleep(0.5)


def _used_mib(client: Client) -> float:
    """Tell the memory that the guest uses."""
    words = output_of(client, NAME, "free", "-b").split()
    return int(words[words.index("Mem:") + 2]) / MIB


def _in_time(began: float) -> None:
    assert time.perf_counter() - began < _WAIT_S, "the cluster does not come up"
