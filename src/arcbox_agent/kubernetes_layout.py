"""Where Kubernetes lies in a guest, and what is recorded of the guest's cluster."""

# pathlib is not imported and imports come late: start-up takes long under emulation.
# ruff: noqa: PTH103, PTH110, PTH208

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from arcbox_agent import files

if TYPE_CHECKING:
    from arcbox_agent.runtime_config import Layout as RuntimeLayout

API_PORT = 6443
ADDRESS = "10.0.2.15"
"""Of every machine, as it sees itself: `arcboxd.domain.machine.GUEST_ADDRESS`."""


class Layout:
    """The paths of Kubernetes, below a root that is empty but in tests."""

    def __init__(self, runtime: RuntimeLayout) -> None:
        """Derive them."""
        self.runtime = runtime
        self.root = runtime.root
        self.bundle = f"{self.root}/run/arcbox/kubernetes"
        self.bin = f"{self.bundle}/bin"
        self.run = f"{self.root}/run/arcbox/cluster"
        self.state = f"{self.root}/var/lib/arcbox/kubernetes"
        self.record = f"{self.state}/cluster.json"
        self.address = f"{self.state}/address.json"

    @property
    def has_bundle(self) -> bool:
        """Whether the disk with Kubernetes is mounted."""
        return os.path.exists(f"{self.bundle}/versions.json")

    def versions(self) -> dict[str, str]:
        """Give the versions of what is on the disk; of `k3s`, or of `kubernetes` and others."""
        return _read(f"{self.bundle}/versions.json")

    def images(self) -> list[str]:
        """List the archives of images that the disk has."""
        folder = f"{self.bundle}/images"
        try:
            return [f"{folder}/{name}" for name in sorted(os.listdir(folder))]
        except FileNotFoundError:
            return []

    def log(self, service: str) -> str:
        """Name a service's log."""
        return f"{self.runtime.logs}/{service}.log"


class Cluster:
    """What is recorded of a cluster when it is made.

    Attributes:
        machine_id: Whose it is: a copy of the machine has another.
        node: Its node's name, which is the machine's at that time.
        distribution: `k3s` or `upstream`.
        version: Of Kubernetes, at its last start.
        found: What was there before, of all the paths that a cluster uses: it stays when the
            cluster is deleted.
        keys_unix_s: When its keys were made; 0: not yet.
    """

    __slots__ = ("distribution", "found", "keys_unix_s", "machine_id", "node", "version")

    def __init__(
        self, machine_id: str, node: str, distribution: str, version: str, found: list[str]
    ) -> None:
        """Describe a new one."""
        self.machine_id = machine_id
        self.node = node
        self.distribution = distribution
        self.version = version
        self.found = found
        self.keys_unix_s = 0

    def save(self, layout: Layout) -> None:
        """Write it down.

        Raises:
            OSError: It cannot be written.
        """
        os.makedirs(layout.state, 0o700, exist_ok=True)
        content = {name: getattr(self, name) for name in self.__slots__}
        files.write(layout.record, json.dumps(content, indent=1), mode=0o600)


def read_cluster(layout: Layout) -> Cluster | None:
    """Read what is recorded; None when there is no cluster, or nothing that makes sense."""
    content = _read(layout.record)
    try:
        cluster = Cluster(
            content["machine_id"],
            content["node"],
            content["distribution"],
            content["version"],
            [str(path) for path in content["found"]],
        )
        cluster.keys_unix_s = int(content["keys_unix_s"])
    except (KeyError, TypeError, ValueError):
        return None
    return cluster


def write_address(layout: Layout, endpoint: str, context: str) -> None:
    """Record where the host reaches the API server, and what it calls the cluster.

    Raises:
        OSError: It cannot be written.
    """
    os.makedirs(layout.state, 0o700, exist_ok=True)
    content = {"endpoint": endpoint, "context": context}
    files.write(layout.address, json.dumps(content), mode=0o600)


def read_address(layout: Layout) -> tuple[str, str]:
    """Read endpoint and context; empty: the host has not said."""
    content = _read(layout.address)
    return str(content.get("endpoint", "")), str(content.get("context", ""))


def _read(path: str) -> dict[str, str]:
    try:
        content = json.loads(files.read(path) or "{}")
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
