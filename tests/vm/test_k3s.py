"""k3s in a machine, of whatever binary ``ARCBOX_K3S_BINARY`` names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.vm.conftest import Host
from tests.vm.kubernetes_client import Kubectl
from tests.vm.waiting import until

BINARY = os.environ.get("ARCBOX_K3S_BINARY", "")

pytestmark = pytest.mark.skipif(not BINARY, reason="ARCBOX_K3S_BINARY names no k3s")

NAME = "light"


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """Give the daemon the binary."""
    return {"ARCBOX_TEMPLATES": "manual", "ARCBOX_K3S_BINARY": BINARY}


@pytest.mark.timeout(1800)
def test_it_comes_up_and_is_deleted(host: Host, tmp_path: Path) -> None:
    shape = ("--cpus", "2", "--memory", "2GiB", "--disk", "8GiB")
    host.arcbox("create", NAME, *shape, "--start")
    host.arcbox("k8s", "start", NAME, "--quiet", timeout_s=900)
    kubeconfig = tmp_path / "config"
    kubeconfig.write_bytes(host.arcbox("k8s", "kubeconfig", NAME).stdout)
    kubectl = Kubectl.of(kubeconfig)
    until(lambda: " Ready" in kubectl("get", "nodes", "--no-headers"), 600, "the node")
    assert "k3s" in kubectl("get", "--raw", "/version")
    host.arcbox("k8s", "delete", NAME, timeout_s=600)
    assert "k3s" not in host.sh(NAME, "ps -eo comm")
    assert host.exec(NAME, "test", "-e", "/var/lib/rancher")[0] == 1
