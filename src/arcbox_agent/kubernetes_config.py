"""Configuration files and command lines of Kubernetes' own programs, by their version.

Source: kubernetes.io/docs/reference/config-api; kubeadm's manifests (cmd/kubeadm/app/phases).
"""

# pathlib is not imported: start-up takes long under emulation.
# ruff: noqa: PTH103, PTH110, PTH119

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

from arcbox_agent import files
from arcbox_agent.kubernetes_layout import ADDRESS, API_PORT
from arcbox_agent.runtime_config import CRI_PLUGIN, UNUSED_PLUGINS
from arcboxd.errors import PreconditionError

if TYPE_CHECKING:
    from arcbox_agent.kubernetes_layout import Cluster, Layout

_SERVICES = "10.96.0.0/16"
_PODS = "10.244.0.0/16"
_NODE_PODS = "10.244.0.0/24"  # what the controller gives the first node
_DNS = "10.96.0.10"
_DOMAIN = "cluster.local"
_PAUSE = "arcbox.local/pause:1"
"""The name in the archive that the host makes: `arcboxd.assets.pause_image.NAME`."""
_CONF = "/etc/kubernetes"
_PKI = f"{_CONF}/pki"
_KUBELET = "/var/lib/kubelet"
_VOLUME_PLUGINS = f"{_KUBELET}/volume-plugins"
_STUB_RESOLVER = "/run/systemd/resolve/resolv.conf"
_OLDEST = 20


class Release:
    """A version of Kubernetes, and what differs between versions.

    Attributes:
        minor: Such as 20 of v1.20.2.
    """

    def __init__(self, version: str) -> None:
        """Parse it.

        Raises:
            PreconditionError: It is none, or too old.
        """
        match = re.match(r"v1\.(\d+)\.", version)
        if match is None or int(match[1]) < _OLDEST:
            raise PreconditionError(
                f"Kubernetes {version[:40]!r} is not known to this agent.",
                hint=f"It knows v1.{_OLDEST} and later.",
            )
        self.version = version
        self.minor = int(match[1])

    @property
    def kubeconfig_command(self) -> tuple[str, ...]:
        """Kubeadm's words to make a kubeconfig for a user of any name."""
        return ("kubeconfig", "user") if self.minor >= 22 else ("alpha", "kubeconfig", "user")  # noqa: PLR2004

    @property
    def kubeadm_api(self) -> str:
        """The newest format of kubeadm's configuration that it knows."""
        if self.minor >= 31:  # noqa: PLR2004
            return "kubeadm.k8s.io/v1beta4"
        return "kubeadm.k8s.io/v1beta3" if self.minor >= 22 else "kubeadm.k8s.io/v1beta2"  # noqa: PLR2004

    @property
    def quick_keys(self) -> dict[str, object]:
        """What makes kubeadm use elliptic curves: RSA keys take a minute under emulation."""
        if self.minor >= 31:  # noqa: PLR2004
            return {"encryptionAlgorithm": "ECDSA-P256"}
        return {"featureGates": {"PublicKeysECDSA": True}}

    @property
    def insecure_port(self) -> list[str]:
        """The option that closes the controllers' ports without TLS, which are gone since 1.24."""
        return ["--port=0"] if self.minor < 24 else []  # noqa: PLR2004

    def kubelet_runtime(self, socket: str, *, pause: bool) -> list[str]:
        """Give the options by which kubelet finds containerd; since 1.27 its file says it."""
        options = []
        if self.minor < 27:  # noqa: PLR2004
            options.append(f"--container-runtime-endpoint=unix://{socket}")
            if pause:
                options.append(f"--pod-infra-container-image={_PAUSE}")
        if self.minor < 24:  # noqa: PLR2004
            options += ["--container-runtime=remote", "--network-plugin=cni"]
        return options


def write_configs(layout: Layout, cluster: Cluster, release: Release) -> None:
    """Write the configuration of every program.

    Raises:
        OSError: A file cannot be written.
    """
    for folder in (layout.run, f"{layout.root}{_KUBELET}", f"{layout.root}/etc/cni/net.d"):
        os.makedirs(folder, 0o755, exist_ok=True)
    socket = f"{layout.run}/containerd.sock"
    files.write(f"{layout.run}/containerd.toml", containerd_config(layout))
    files.write(f"{layout.run}/kubeadm.yaml", _documents(*_kubeadm(cluster, release, socket)))
    files.write(
        f"{layout.root}{_KUBELET}/config.yaml", _document(_kubelet(layout, socket, release))
    )
    files.write(f"{layout.run}/kube-proxy.yaml", _document(_proxy(cluster)))
    files.write(f"{layout.root}/etc/cni/net.d/10-arcbox.conflist", _document(_network()))


def containerd_config(layout: Layout) -> str:
    """Give the configuration of the cluster's containerd. See containerd-config.toml(5)."""
    cri = f'plugins."{CRI_PLUGIN}"'
    lines = [
        "version = 2",
        f'root = "{layout.state}/containerd"',
        f'state = "{layout.run}/containerd"',
        "oom_score = -999",
        f"disabled_plugins = {json.dumps(UNUSED_PLUGINS)}",
        "[grpc]",
        f'  address = "{layout.run}/containerd.sock"',
        f"[{cri}]",
        *([f'  sandbox_image = "{_PAUSE}"'] if has_pause(layout) else []),
        f"[{cri}.cni]",
        f'  bin_dir = "{layout.runtime.bundle}/cni"',
        '  conf_dir = "/etc/cni/net.d"',
        f"[{cri}.containerd.runtimes.runc]",
        '  runtime_type = "io.containerd.runc.v2"',
        f"[{cri}.registry]",
        '  config_path = "/etc/containerd/certs.d"',
    ]
    return "\n".join(lines) + "\n"


def has_pause(layout: Layout) -> bool:
    """Say whether the disk has an image for pods' first process; else containerd fetches one."""
    return any(path.endswith("/pause.tar") for path in layout.images())


def has_coredns(images: list[str]) -> bool:
    """Say whether an archive of CoreDNS is among these, by their names."""
    return any(re.match(r"coredns\b", os.path.basename(path)) for path in images)


def component_argv(name: str, layout: Layout, cluster: Cluster, release: Release) -> list[str]:
    """Give the command line of a program."""
    socket = f"{layout.run}/containerd.sock"
    match name:
        case "etcd":
            options = _etcd_options(cluster)
        case "kube-apiserver":
            options = _api_options()
        case "kube-controller-manager":
            options = _controller_options(release)
        case "kube-scheduler":
            options = [*_own_kubeconfig("scheduler"), *release.insecure_port]
        case "kubelet":
            options = [
                f"--config={_KUBELET}/config.yaml",
                f"--kubeconfig={_CONF}/kubelet.conf",
                f"--hostname-override={cluster.node}",
                f"--volume-plugin-dir={_VOLUME_PLUGINS}",
                *release.kubelet_runtime(socket, pause=has_pause(layout)),
            ]
        case _:
            options = [f"--config={layout.run}/kube-proxy.yaml"]
    return [f"{layout.bin}/{name}", *options]


def _etcd_options(cluster: Cluster) -> list[str]:
    pki = f"{_PKI}/etcd"
    client, peer = "https://127.0.0.1:2379", "https://127.0.0.1:2380"
    return [
        f"--name={cluster.node}",
        "--data-dir=/var/lib/etcd",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster={cluster.node}={peer}",
        "--listen-metrics-urls=http://127.0.0.1:2381",
        *(f"--cert-file={pki}/server.crt", f"--key-file={pki}/server.key"),
        *(f"--trusted-ca-file={pki}/ca.crt", "--client-cert-auth"),
        *(f"--peer-cert-file={pki}/peer.crt", f"--peer-key-file={pki}/peer.key"),
        *(f"--peer-trusted-ca-file={pki}/ca.crt", "--peer-client-cert-auth"),
    ]


def _api_options() -> list[str]:
    etcd = f"{_PKI}/apiserver-etcd-client"
    kubelet = f"{_PKI}/apiserver-kubelet-client"
    front = f"{_PKI}/front-proxy"
    return [
        f"--advertise-address={ADDRESS}",
        f"--secure-port={API_PORT}",
        "--allow-privileged=true",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--enable-bootstrap-token-auth=true",
        f"--service-cluster-ip-range={_SERVICES}",
        f"--service-account-issuer=https://kubernetes.default.svc.{_DOMAIN}",
        *(f"--service-account-key-file={_PKI}/sa.pub",),
        f"--service-account-signing-key-file={_PKI}/sa.key",
        f"--client-ca-file={_PKI}/ca.crt",
        *(f"--tls-cert-file={_PKI}/apiserver.crt", f"--tls-private-key-file={_PKI}/apiserver.key"),
        *("--etcd-servers=https://127.0.0.1:2379", f"--etcd-cafile={_PKI}/etcd/ca.crt"),
        *(f"--etcd-certfile={etcd}.crt", f"--etcd-keyfile={etcd}.key"),
        f"--kubelet-client-certificate={kubelet}.crt",
        f"--kubelet-client-key={kubelet}.key",
        "--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname",
        f"--proxy-client-cert-file={front}-client.crt",
        f"--proxy-client-key-file={front}-client.key",
        f"--requestheader-client-ca-file={front}-ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
    ]


def _controller_options(release: Release) -> list[str]:
    return [
        *_own_kubeconfig("controller-manager"),
        *release.insecure_port,
        f"--client-ca-file={_PKI}/ca.crt",
        f"--root-ca-file={_PKI}/ca.crt",
        f"--requestheader-client-ca-file={_PKI}/front-proxy-ca.crt",
        f"--cluster-signing-cert-file={_PKI}/ca.crt",
        f"--cluster-signing-key-file={_PKI}/ca.key",
        f"--service-account-private-key-file={_PKI}/sa.key",
        "--use-service-account-credentials",
        "--controllers=*,bootstrapsigner,tokencleaner",
        "--allocate-node-cidrs",
        f"--cluster-cidr={_PODS}",
        f"--service-cluster-ip-range={_SERVICES}",
        "--cluster-name=arcbox",
        f"--flex-volume-plugin-dir={_VOLUME_PLUGINS}",
    ]


def _own_kubeconfig(name: str) -> list[str]:
    path = f"{_CONF}/{name}.conf"
    return [
        f"--kubeconfig={path}",
        f"--authentication-kubeconfig={path}",
        f"--authorization-kubeconfig={path}",
        "--bind-address=127.0.0.1",
        # There is but one of each.
        "--leader-elect=false",
    ]


def _kubeadm(cluster: Cluster, release: Release, socket: str) -> list[dict[str, object]]:
    return [
        {
            "apiVersion": release.kubeadm_api,
            "kind": "InitConfiguration",
            "localAPIEndpoint": {"advertiseAddress": ADDRESS, "bindPort": API_PORT},
            "nodeRegistration": {"name": cluster.node, "criSocket": f"unix://{socket}"},
        },
        {
            "apiVersion": release.kubeadm_api,
            "kind": "ClusterConfiguration",
            "clusterName": "arcbox",
            "kubernetesVersion": release.version,
            "networking": {
                "serviceSubnet": _SERVICES,
                "podSubnet": _PODS,
                "dnsDomain": _DOMAIN,
            },
            "apiServer": {"certSANs": ["127.0.0.1", "localhost"]},
            **release.quick_keys,
        },
    ]


def _kubelet(layout: Layout, socket: str, release: Release) -> dict[str, object]:
    found: dict[str, object] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{_PKI}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "clusterDomain": _DOMAIN,
        "failSwapOn": False,
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": 10248,
        # Disks are small here and given back to the host when trimmed: no pods need to go for them.
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "3%",
            "imagefs.available": "3%",
        },
    }
    if has_coredns(layout.images()):
        found["clusterDNS"] = [_DNS]
    if os.path.exists(layout.root + _STUB_RESOLVER):
        found["resolvConf"] = _STUB_RESOLVER
    if release.minor >= 27:  # noqa: PLR2004
        found["containerRuntimeEndpoint"] = f"unix://{socket}"
    return found


def _proxy(cluster: Cluster) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": _PODS,
        "hostnameOverride": cluster.node,
        "clientConnection": {"kubeconfig": f"{_CONF}/kube-proxy.conf"},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "conntrack": {"maxPerCore": 0},  # as the guest has it
    }


def _network() -> dict[str, object]:
    """Give the pods' network. See cni.dev/plugins/current."""
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": _NODE_PODS}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True}
    return {
        "cniVersion": "0.4.0",
        "name": "arcbox",
        "plugins": [
            {"type": "bridge", **bridge, "ipam": ipam},
            {"type": "portmap", "capabilities": {"portMappings": True}},
            # Docker lets nothing be forwarded that nobody has allowed.
            {"type": "firewall", "backend": "iptables"},
        ],
    }


def _documents(*documents: dict[str, object]) -> str:
    return "---\n".join(_document(each) for each in documents)


def _document(content: dict[str, object]) -> str:
    return json.dumps(content, indent=1) + "\n"  # JSON is YAML
