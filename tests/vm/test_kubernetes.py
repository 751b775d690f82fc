"""A cluster in a machine, by Debian's kubectl and the library from PyPI, neither of them ours.

A real Kubernetes, of the bundle that lies beside the repository. The tests share one cluster, which
the first brings up, and go on in order. Under emulation they need two processors that nothing else
wants, and ten minutes; with ``--kubernetes`` the long ones run too, half an hour in all.
"""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import kubernetes
import pytest

from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2
from tests.vm.conftest import Host
from tests.vm.kubernetes_client import (
    BUNDLE,
    VERSION,
    Kubectl,
    deployment,
    image_archive,
    node_port,
    pin_bundle,
)
from tests.vm.waiting import until

pytestmark = pytest.mark.skipif(not BUNDLE.exists(), reason=f"there is no {BUNDLE}")

NAME = "kube"
PARTS = {
    *("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"),
    *("containerd", "kubelet", "kube-proxy"),
}
PODS_S = 600
LISTS = {
    "processes": "ps -eo args --no-headers | grep -v '^\\[\\|^(udev-worker)'"
    " | sed 's/ .*//' | sort",
    "mounts": "cut -d' ' -f5 /proc/self/mountinfo | sort",
    "interfaces": "ls /sys/class/net",
    "rules": "set -e; export PATH=/run/arcbox/runtime/bin:$PATH"
    " XTABLES_LIBDIR=/run/arcbox/runtime/lib/xtables; iptables-save > /tmp/rules;"
    " ip6tables-save >> /tmp/rules; sed -n 's/^:\\([A-Z].* -\\).*/\\1/p; /^-A/p' /tmp/rules | sort",
    "files": "find / -xdev \\( -path /proc -o -path /sys -o -path /tmp -o -path /var/log"
    " -o -path /var/cache -o -path /root \\) -prune -o -print | sort",
    "logs": "find /var/log/arcbox /var/log/pods /var/log/containers 2>/dev/null | sort",
    "namespaces": "ls /run/netns 2>/dev/null || :",
    "groups": "find /sys/fs/cgroup -maxdepth 2 -type d | grep 'kubepods\\|k8s.io' || :",
}


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """Make machines of the size that a cluster needs."""
    return {"ARCBOX_TEMPLATES": "manual"}


@pytest.fixture
def long(request: pytest.FixtureRequest) -> None:
    """Skip a test that takes long, unless it is asked for."""
    if not request.config.getoption("--kubernetes"):
        pytest.skip("takes long: ./dev test --kubernetes")


@pytest.fixture(scope="module")
def machine(host: Host) -> str:
    """Start a machine that has what a cluster needs, and none yet."""
    pin_bundle(host.home)
    shape = ("--cpus", "2", "--memory", "2GiB", "--disk", "8GiB")
    host.arcbox("create", NAME, *shape, "--start")
    return NAME


@pytest.fixture(scope="module")
def before(host: Host, machine: str) -> dict[str, set[str]]:
    """List what there is without a cluster; with a container runtime, which stays."""
    host.arcbox("runtime", "ensure", machine)
    return listed(host)


def listed(host: Host) -> dict[str, set[str]]:
    """List what a cluster may leave behind."""
    return {what: set(host.sh(NAME, script).splitlines()) for what, script in LISTS.items()}


@pytest.fixture(scope="module")
def kubectl(
    host: Host, before: dict[str, set[str]], tmp_path_factory: pytest.TempPathFactory
) -> Kubectl:
    """Bring the cluster up, as a user does."""
    del before
    started = host.arcbox("k8s", "start", NAME, "--quiet", timeout_s=900)
    assert started.stdout == b"https://127.0.0.1:16443\n" or b":164" in started.stdout
    kubeconfig = tmp_path_factory.mktemp("kube") / "config"
    kubeconfig.write_bytes(host.arcbox("k8s", "kubeconfig", NAME).stdout)
    return Kubectl.of(kubeconfig)


@pytest.fixture(scope="module")
def image(host: Host, kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give the cluster an image, as a user does."""
    del kubectl
    archive = image_archive(tmp_path_factory.mktemp("image") / "1")
    host.arcbox("k8s", "load", NAME, stdin=archive.read_bytes())


def status(host: Host) -> agent_pb2.KubernetesStatusResponse:
    """Ask how the cluster is."""
    return host.ext.GetKubernetesStatus(host_pb2.GetKubernetesStatusRequest(id=NAME), timeout=60)


def states(host: Host) -> dict[str, str]:
    """Ask how each part is."""
    return {part.name: part.status for part in status(host).services}


def all_ready(host: Host) -> bool:
    """Tell whether every part is ready."""
    found = states(host)
    return found.keys() == PARTS and set(found.values()) == {"ready"}


def page(port: int) -> str:
    """Fetch a page from a port of this host; nothing when it is not there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/version", timeout=20) as answer:
            return str(answer.read().decode()).strip()
    except OSError:
        return ""


def running_pods(kubectl: Kubectl, tag: str = "1") -> int:
    """Count the ready pods of an image."""
    items = json.loads(kubectl("get", "pods", "-o", "json"))["items"]
    return sum(
        all(each["ready"] for each in pod["status"].get("containerStatuses", [{"ready": False}]))
        for pod in items
        if pod["spec"]["containers"][0]["image"].endswith(f":{tag}")
        and "deletionTimestamp" not in pod["metadata"]
    )


def service_port(kubectl: Kubectl) -> int:
    """Tell the node port of the service."""
    return int(kubectl("get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}"))


@pytest.mark.timeout(1200)
def test_a_cluster_comes_up(host: Host, kubectl: Kubectl) -> None:
    found = status(host)
    assert found.running
    # It was ready when the start returned; under emulation a check of it may come too late since.
    until(lambda: status(host).api_ready, PODS_S, "the API server")
    assert found.endpoint.startswith("https://127.0.0.1:")
    assert kubectl("get", "--raw", "/readyz") == "ok"
    assert f'gitVersion": "{VERSION}' in kubectl("get", "--raw", "/version")
    until(lambda: all_ready(host), PODS_S, "every part")
    until(lambda: " Ready" in kubectl("get", "nodes", "--no-headers"), PODS_S, "the node")


def test_the_library_sees_the_node(kubectl: Kubectl) -> None:
    make = kubernetes.config.new_client_from_config
    client = make(str(kubectl.kubeconfig))  # type: ignore[no-untyped-call]
    try:
        listed = kubernetes.client.CoreV1Api(client).list_node()
        nodes = client.sanitize_for_serialization(listed)["items"]
        assert [node["metadata"]["name"] for node in nodes] == [NAME]
        assert nodes[0]["status"]["nodeInfo"]["kubeletVersion"] == VERSION
    finally:
        client.close()


@pytest.mark.usefixtures("image")
def test_pods_run_and_are_reached_from_the_host(kubectl: Kubectl) -> None:
    kubectl.apply(deployment("web", 1), node_port("web"))
    until(lambda: running_pods(kubectl) == 1, PODS_S, "the pod")
    until(lambda: page(service_port(kubectl)) == "1", 120, "its page by the node port")
    pod = kubectl("get", "pods", "-o", "name")
    assert kubectl("exec", pod, "--", "cat", "/version") == "1"
    kubectl("exec", pod, "--", "sh", "-c", "echo of the pod > /proc/1/fd/1")
    until(lambda: "of the pod" in kubectl("logs", pod), 60, "its log")
    with kubectl.port_forward(pod, 80) as port:
        until(lambda: page(port) == "1", 120, "its page by port-forward")


@pytest.mark.usefixtures("long", "image")
@pytest.mark.timeout(1800)
def test_three_pods_and_their_service(host: Host, kubectl: Kubectl, tmp_path: Path) -> None:
    kubectl("scale", "deployment", "web", "--replicas=3")
    until(lambda: running_pods(kubectl) == 3, PODS_S, "three pods")
    address = kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
    pod = kubectl("get", "pods", "-o", "name").splitlines()[0]
    fetch = ("exec", pod, "--", "wget", "-q", "-O", "-", f"http://{address}/version")
    until(lambda: kubectl(*fetch) == "1", 120, "the service from a pod")
    archive = image_archive(tmp_path / "2", tag="2")
    host.arcbox("k8s", "load", NAME, stdin=archive.read_bytes())
    kubectl.apply(deployment("web", 3, tag="2"))
    kubectl("rollout", "status", "deployment/web", f"--timeout={PODS_S}s", timeout_s=PODS_S + 60)
    until(lambda: page(service_port(kubectl)) == "2", 120, "the new page")
    kubectl.apply(deployment("web", 1, tag="1"))
    kubectl("rollout", "status", "deployment/web", f"--timeout={PODS_S}s", timeout_s=PODS_S + 60)


@pytest.mark.usefixtures("long")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("signal", ["KILL", "STOP"])
def test_status_tells_the_truth(host: Host, kubectl: Kubectl, signal: str) -> None:
    del kubectl
    until(lambda: all_ready(host), PODS_S, "every part")
    for part in sorted(PARTS):
        program = (
            "/run/arcbox/runtime/bin/containerd --config /run/arcbox/cluster"
            if part == ("containerd")
            else f"/run/arcbox/kubernetes/bin/{part}"
        )
        pid = host.sh(NAME, f"pgrep -f '^{program}( |$|/)' | head -1").strip()
        host.sh(NAME, f"kill -{signal} {pid}")
        try:
            until(lambda p=part: states(host)[p] != "ready", 60, f"the word on {part}")
            if part == "kube-apiserver":
                assert not status(host).api_ready
        finally:
            if signal == "STOP":
                host.sh(NAME, f"kill -CONT {pid}")
        until(lambda p=part: states(host)[p] == "ready", PODS_S, f"{part} again")


@pytest.mark.usefixtures("image")
def test_stop_ends_everything_and_keeps_the_data(host: Host, kubectl: Kubectl) -> None:
    port = service_port(kubectl)
    host.arcbox("k8s", "stop", NAME, timeout_s=600)
    found = status(host)
    assert (found.running, found.api_ready) == (False, False)
    assert set(states(host).values()) == {"not_ready"}
    left = host.sh(NAME, LISTS["processes"])
    assert "kube" not in left
    assert "pause" not in left
    assert "containerd-shim" not in left
    assert "etcd" not in left
    assert page(port) == ""
    assert host.sh(NAME, "ls /var/lib/etcd").strip() == "member"


@pytest.mark.timeout(1800)
def test_all_of_it_comes_back(host: Host, kubectl: Kubectl) -> None:
    host.arcbox("k8s", "start", NAME, "--quiet", timeout_s=900)
    until(lambda: running_pods(kubectl) == 1, PODS_S, "the pod")
    until(lambda: page(service_port(kubectl)) == "1", 120, "its page")


@pytest.mark.usefixtures("long")
@pytest.mark.timeout(2400)
def test_it_comes_back_with_its_machine(host: Host, kubectl: Kubectl) -> None:
    host.arcbox("stop", NAME)
    host.arcbox("start", NAME)
    until(lambda: kubectl.run("get", "--raw", "/readyz").stdout == b"ok", 900, "the API server")
    until(lambda: running_pods(kubectl) == 1, PODS_S, "the pod")
    until(lambda: page(service_port(kubectl)) == "1", 120, "its page")
    host.arcbox("suspend", NAME)
    host.arcbox("resume", NAME)
    until(lambda: kubectl.run("get", "--raw", "/readyz").stdout == b"ok", 300, "the API server")
    until(lambda: page(service_port(kubectl)) == "1", 120, "its page")


def test_the_users_kubectl(host: Host, kubectl: Kubectl, tmp_path: Path) -> None:
    config = tmp_path / "config"
    env = host.env
    host.env = {**env, "KUBECONFIG": str(config)}
    try:
        assert host.arcbox("k8s", "enable", NAME).stdout == f"arcbox-{NAME}\n".encode()
        own = Kubectl(kubectl.program, config)
        assert own("config", "current-context") == f"arcbox-{NAME}"
        assert own("get", "nodes", "-o", "name") == f"node/{NAME}"
        host.arcbox("k8s", "disable", NAME)
        assert f"arcbox-{NAME}" not in config.read_text()
    finally:
        host.env = env


@pytest.mark.usefixtures("kubectl")
def test_delete_leaves_nothing(host: Host, before: dict[str, set[str]]) -> None:
    host.arcbox("k8s", "delete", NAME, timeout_s=600)
    after = listed(host)
    left = {what: found - before[what] for what, found in after.items() if found - before[what]}
    assert not left, json.dumps({what: sorted(found) for what, found in left.items()}, indent=1)
    assert not status(host).running
    done = host.arcbox("k8s", "kubeconfig", NAME, check=False)
    assert done.returncode == 1
    # A second time there is nothing to do.
    host.arcbox("k8s", "delete", NAME)


def test_a_copy_has_to_make_its_own(host: Host, machine: str) -> None:
    # Just the record: no second cluster is brought up to be copied.
    record = {"machine_id": "0" * 32, "node": NAME, "distribution": "upstream",
              "version": VERSION, "found": [], "keys_unix_s": 1}  # fmt: skip
    folder = "/var/lib/arcbox/kubernetes"
    host.sh(
        machine, f"mkdir -p {folder}; cat > {folder}/cluster.json <<'E'\n{json.dumps(record)}\nE"
    )
    done = host.arcbox("k8s", "start", machine, "--quiet", check=False)
    assert done.returncode == 1
    assert b"is a copy" in done.stderr
    host.arcbox("k8s", "delete", machine)
    assert host.exec(machine, "test", "-e", f"{folder}/cluster.json")[0] == 1
