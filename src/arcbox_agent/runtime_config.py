"""Where the container runtime lies, and how its daemons are run and configured.

Source: containerd-config.toml(5); docs.docker.com/reference/cli/dockerd.
"""

# pathlib is not imported and imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415, PTH110, PTH113

from __future__ import annotations

import os

from arcbox_agent import files
from arcbox_agent.child import DEFAULT_PATH
from arcbox_agent.service_record import Service
from arcboxd.errors import PreconditionError

ENDPOINT = "unix:///var/run/docker.sock"

_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""Where Go looks for them (crypto/x509/root_linux.go)."""

CRI_PLUGIN = "io.containerd.grpc.v1.cri"
UNUSED_PLUGINS = (
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
)
_UNUSED_BY_DOCKER = (CRI_PLUGIN, "io.containerd.nri.v1.nri", "io.containerd.monitor.v1.cgroups")

# Containers inherit the limits, which are process 1's and small where init raises none.
PRELUDE = "ulimit -n 1048576; ulimit -u unlimited; ulimit -c unlimited"


class Layout:
    """The paths of the runtime, below a root that is empty but in tests."""

    def __init__(self, root: str) -> None:
        """Derive them."""
        self.root = root
        self.bundle = f"{root}/run/arcbox/runtime"
        self.bin = f"{self.bundle}/bin"
        self.docker_socket = f"{root}/var/run/docker.sock"
        self.docker_config = f"{root}/run/arcbox/docker.json"
        self.own_docker_config = f"{root}/etc/docker/daemon.json"
        self.containerd_socket = f"{root}/run/containerd/containerd.sock"
        self.containerd_config = f"{root}/run/arcbox/containerd.toml"
        self.logs = f"{root}/var/log/arcbox"

    @property
    def has_bundle(self) -> bool:
        """Whether the bundle is mounted."""
        return os.path.exists(f"{self.bin}/dockerd")

    def versions(self) -> dict[str, str]:
        """Give the versions of what is in the bundle, by program."""
        import json

        try:
            found = json.loads(files.read(f"{self.bundle}/versions.json") or "{}")
        except (OSError, ValueError):
            return {}
        return {str(name): str(version) for name, version in found.items()}


def environment(layout: Layout) -> dict[str, str]:
    """Give what the bundle's programs need: they come before the distribution's."""
    found = {
        "PATH": f"{layout.bin}:{DEFAULT_PATH}",
        "LANG": "C.UTF-8",
        "HOME": "/root",
        "XTABLES_LIBDIR": f"{layout.bundle}/lib/xtables",
    }
    if not any(os.path.isfile(layout.root + path) for path in _CERTIFICATES):
        found["SSL_CERT_FILE"] = f"{layout.bundle}/etc/ssl/certs/ca-certificates.crt"
    return found


def containerd_service(layout: Layout) -> Service:
    """Say how containerd is run."""
    argv = [f"{layout.bin}/containerd", "--config", layout.containerd_config]
    log = f"{layout.logs}/containerd.log"
    return Service("containerd", argv, environment(layout), log, PRELUDE)


def dockerd_service(layout: Layout) -> Service:
    """Say how dockerd is run."""
    argv = [f"{layout.bin}/dockerd", "--config-file", layout.docker_config]
    log = f"{layout.logs}/dockerd.log"
    return Service("dockerd", argv, environment(layout), log, PRELUDE)


def write_containerd_config(layout: Layout) -> bool:
    """Write containerd's configuration; say if it changed.

    Raises:
        OSError: It cannot be written.
    """
    import json

    lines = [
        "version = 2",
        f'root = "{layout.root}/var/lib/containerd"',
        f'state = "{layout.root}/run/containerd"',
        "oom_score = -999",
        # Docker does without them, and starts sooner.
        f"disabled_plugins = {json.dumps(UNUSED_PLUGINS + _UNUSED_BY_DOCKER)}",
        "[grpc]",
        f'  address = "{layout.containerd_socket}"',
    ]
    return files.write(layout.containerd_config, "\n".join(lines) + "\n")


def write_docker_config(layout: Layout, **changes: object) -> bool:
    """Write dockerd's configuration: ours, what the guest's own file says, and `changes`.

    Returns:
        Whether it changed.

    Raises:
        OSError: It cannot be written.
        PreconditionError: The guest's own makes no sense.
    """
    import json

    return files.write(
        layout.docker_config, json.dumps(merge_docker_config(layout) | changes, indent=1)
    )


def merge_docker_config(layout: Layout) -> dict[str, object]:
    """Merge ours and the guest's own: theirs wins, but sockets are those of both.

    Raises:
        OSError: The guest's own cannot be read.
        PreconditionError: The guest's own makes no sense.
    """
    socket = f"unix://{layout.docker_socket}"
    merged: dict[str, object] = {
        "hosts": [socket],
        "containerd": layout.containerd_socket,
        "live-restore": True,
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "group": "docker",
        # What containers call host-gateway is the real host, as QEMU shows it.
        "host-gateway-ip": "10.0.2.2",
    }
    own = _read_own_config(layout.own_docker_config)
    hosts = own.pop("hosts", [])
    if not isinstance(hosts, list):
        raise PreconditionError('In the guest\'s /etc/docker/daemon.json "hosts" is not a list.')
    # However it is spelt, the same socket must not be listened on twice.
    same = {socket, "unix:///run/docker.sock", "unix://", "fd://"}
    merged["hosts"] = [socket, *(host for host in hosts if host not in same)]
    return merged | own


def _read_own_config(path: str) -> dict[str, object]:
    import json

    text = files.read(path)
    if not text.strip():
        return {}
    try:
        own = json.loads(text)
    except ValueError as error:
        raise PreconditionError(
            f"The guest's /etc/docker/daemon.json is not JSON: {error}.",
            hint="Correct or remove that file in the machine.",
        ) from error
    if not isinstance(own, dict):
        raise PreconditionError(
            "The guest's /etc/docker/daemon.json is not an object.",
            hint="Correct or remove that file in the machine.",
        )
    return own
