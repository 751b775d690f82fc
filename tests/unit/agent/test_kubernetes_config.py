"""What Kubernetes' programs are told, by version; and what of a cluster is removed."""

from __future__ import annotations

import asyncio
import json
import tomllib
from pathlib import Path
from typing import Any, cast

import pytest

from arcbox_agent import kubernetes_config as config
from arcbox_agent import runtime_config
from arcbox_agent.kubernetes import make_kubeconfig
from arcbox_agent.kubernetes_end import removal
from arcbox_agent.kubernetes_k3s import K3s
from arcbox_agent.kubernetes_layout import (
    Cluster,
    Layout,
    read_address,
    read_cluster,
    write_address,
)
from arcbox_agent.kubernetes_upstream import drop_leaf_keys
from arcbox_agent.probe import probe
from arcboxd.errors import PreconditionError


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(runtime_config.Layout(str(tmp_path)))
    images = Path(found.bundle, "images")
    images.mkdir(parents=True)
    (images / "pause.tar").touch()
    return found


@pytest.fixture
def cluster() -> Cluster:
    return Cluster("ab" * 16, "dev", "upstream", "v1.20.2", [])


@pytest.mark.parametrize(
    ("version", "api", "keys", "words", "insecure"),
    [
        ("v1.20.2", "v1beta2", "featureGates", ("alpha", "kubeconfig", "user"), ["--port=0"]),
        ("v1.22.0", "v1beta3", "featureGates", ("kubeconfig", "user"), ["--port=0"]),
        ("v1.30.9", "v1beta3", "featureGates", ("kubeconfig", "user"), []),
        ("v1.34.1+k3s1", "v1beta4", "encryptionAlgorithm", ("kubeconfig", "user"), []),
    ],
)
def test_what_differs_between_versions(
    version: str, api: str, keys: str, words: tuple[str, ...], insecure: list[str]
) -> None:
    release = config.Release(version)
    assert release.kubeadm_api == f"kubeadm.k8s.io/{api}"
    assert list(release.quick_keys) == [keys]
    assert release.kubeconfig_command == words
    assert release.insecure_port == insecure


@pytest.mark.parametrize("version", ["", "v1.19.9", "v2.0.0", "1.30.0", "v1.x.1"])
def test_a_version_nobody_knows(version: str) -> None:
    with pytest.raises(PreconditionError, match="not known"):
        config.Release(version)


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        ("v1.20.2", {"--container-runtime", "--network-plugin", "--container-runtime-endpoint"}),
        ("v1.25.0", {"--container-runtime-endpoint", "--pod-infra-container-image"}),
        ("v1.31.0", set()),
    ],
)
def test_how_kubelet_finds_containerd(
    layout: Layout, cluster: Cluster, version: str, wanted: set[str]
) -> None:
    release = config.Release(version)
    argv = config.component_argv("kubelet", layout, cluster, release)
    options = {word.partition("=")[0] for word in argv}
    known = {
        *("--container-runtime", "--network-plugin", "--container-runtime-endpoint"),
        "--pod-infra-container-image",
    }
    assert options & known >= wanted
    assert bool(options & known) == bool(wanted)
    config.write_configs(layout, cluster, release)
    written = json.loads(Path(layout.root, "var/lib/kubelet/config.yaml").read_text())
    assert ("containerRuntimeEndpoint" in written) == (version == "v1.31.0")


def test_the_configurations(layout: Layout, cluster: Cluster) -> None:
    config.write_configs(layout, cluster, config.Release("v1.20.2"))
    containerd = tomllib.loads(Path(layout.run, "containerd.toml").read_text())
    assert "io.containerd.grpc.v1.cri" not in containerd["disabled_plugins"]
    cri = containerd["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["sandbox_image"] == "arcbox.local/pause:1"
    documents = Path(layout.run, "kubeadm.yaml").read_text().split("---\n")
    init, whole = (json.loads(document) for document in documents)
    assert init["nodeRegistration"]["name"] == "dev"
    # The host reaches the API server by its own loopback address.
    assert "127.0.0.1" in whole["apiServer"]["certSANs"]
    network = json.loads(Path(layout.root, "etc/cni/net.d/10-arcbox.conflist").read_text())
    assert [plugin["type"] for plugin in network["plugins"]] == ["bridge", "portmap", "firewall"]


def test_dns_only_where_there_is_one(layout: Layout, cluster: Cluster) -> None:
    written = Path(layout.root, "var/lib/kubelet/config.yaml")
    config.write_configs(layout, cluster, config.Release("v1.20.2"))
    assert "clusterDNS" not in json.loads(written.read_text())
    Path(layout.bundle, "images", "coredns-1.7.tar").touch()
    config.write_configs(layout, cluster, config.Release("v1.20.2"))
    assert json.loads(written.read_text())["clusterDNS"] == ["10.96.0.10"]


def test_no_component_listens_where_it_need_not(layout: Layout, cluster: Cluster) -> None:
    release = config.Release("v1.20.2")
    for name in ("kube-controller-manager", "kube-scheduler"):
        argv = config.component_argv(name, layout, cluster, release)
        assert "--bind-address=127.0.0.1" in argv
    etcd = config.component_argv("etcd", layout, cluster, release)
    assert "--client-cert-auth" in etcd
    assert all("://127.0.0.1" in word for word in etcd if "-urls=" in word)


def test_k3s_command_line(layout: Layout) -> None:
    kind = K3s(layout, cast("Any", None), cast("Any", None))  # the line needs neither
    words = kind.argv(Cluster("", "dev", "k3s", "v1.36.4+k3s1", []))
    assert words[:2] == [f"{layout.bin}/k3s", "server"]
    assert {"--node-name=dev", "--https-listen-port=6443", "--tls-san=127.0.0.1"} <= set(words)


def test_records(layout: Layout, cluster: Cluster) -> None:
    assert read_cluster(layout) is None
    cluster.save(layout)
    found = read_cluster(layout)
    assert found is not None
    assert (found.machine_id, found.node, found.version) == ("ab" * 16, "dev", "v1.20.2")
    assert Path(layout.record).stat().st_mode & 0o777 == 0o600
    Path(layout.record).write_text('{"machine_id": 1}')
    assert read_cluster(layout) is None
    assert read_address(layout) == ("", "")
    write_address(layout, "https://127.0.0.1:16443", "arcbox")
    assert read_address(layout) == ("https://127.0.0.1:16443", "arcbox")


def test_keys_are_made_anew_by_the_same_authorities(tmp_path: Path) -> None:
    kept = ("pki/ca.key", "pki/etcd/ca.crt", "pki/sa.key", "pki/sa.pub", "pki/front-proxy-ca.crt")
    gone = ("pki/apiserver.crt", "pki/etcd/server.key", "admin.conf", "kubelet.conf")
    for name in (*kept, *gone):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    drop_leaf_keys(str(tmp_path))
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(kept)


RULES = """\
# Generated by iptables-save
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [1:2]
:DOCKER - [0:0]
:KUBE-SERVICES - [0:0]
:CNI-0123 - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 10.244.0.4/32 -m comment --comment "name: \\"arcbox\\" id: \\"x\\"" -j CNI-0123
-A CNI-0123 ! -d 224.0.0.0/4 -j MASQUERADE
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-X
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -j DOCKER-USER
COMMIT
"""


def test_only_a_cluster_s_rules_are_removed() -> None:
    script = removal(RULES)
    named = '"name: \\"arcbox\\" id: \\"x\\""'
    assert script.splitlines() == [
        "*nat",
        '-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        *(f"-D POSTROUTING -s 10.244.0.4/32 -m comment --comment {named} -j CNI-0123",),
        "-F KUBE-SERVICES",
        "-F CNI-0123",
        "-X KUBE-SERVICES",
        "-X CNI-0123",
        "COMMIT",
    ]
    assert removal("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n") == ""


KUBECONFIG = """\
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: Q0E=
    server: https://10.0.2.15:6443
  name: kubernetes
users:
- name: admin
  user:
    client-certificate-data: Q0VSVA==
    client-key-data: S0VZ
    exec: {command: evil}
"""


def test_the_kubeconfig_has_the_host_s_address() -> None:
    made = make_kubeconfig(KUBECONFIG, "https://127.0.0.1:16444", "arcbox-dev")
    assert "server: https://127.0.0.1:16444" in made
    assert "current-context: arcbox-dev" in made
    assert "Q0VSVA==" in made
    assert "evil" not in made
    with pytest.raises(PreconditionError, match="client-key-data"):
        make_kubeconfig(KUBECONFIG.replace("client-key-data", "x"), "https://h:1", "a")


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nok", ""),
        (
            b"HTTP/1.1 500 Internal Error\r\n\r\n[+]ping ok\n[-]etcd failed\n[-]log failed\n",
            "it says 500 Internal Error: [-]etcd failed, [-]log failed",
        ),
        (b"HTTP/1.1 404 Not Found\r\n\r\nnone\n", "it says 404 Not Found: none"),
        (b"nonsense", "it does not answer"),
        (b"", "it does not answer"),
    ],
)
async def test_probe(answer: bytes, verdict: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = await probe(f"http://127.0.0.1:{port}/healthz", 5)
    assert found.startswith(verdict)
    assert bool(found) == bool(verdict)
    assert await probe(f"http://127.0.0.1:{port}/healthz", 5) != "", "nobody listens any more"
