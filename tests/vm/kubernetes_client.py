"""kubectl from Debian against a cluster of ours, and the image that pods are made of."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.vm.alpine import oci_archive, oci_layout
from tests.vm.docker_client import debian_program, root_tar

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT.parent / "shared/kubernetes/kubernetes-v1.20.2-linux-amd64.tar.xz"
VERSION = "v1.20.2"
_SLOW = re.compile(rb"timeout|timed out|deadline exceeded|Client.Timeout|try again")
IMAGE = "arcbox.test/box:1"
"""A name that no registry answers to; the second version has the tag 2."""


def pin_bundle(home: Path) -> None:
    """Let machines of a state directory have the bundle that lies beside the repository."""
    with BUNDLE.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    home.mkdir(parents=True, exist_ok=True)
    (home / "kubernetes.toml").write_text(
        f'distribution = "upstream"\n[upstream]\nversion = "{VERSION}"\n'
        f'bundle = "{BUNDLE}"\nsha256 = "{digest}"\n'
    )


def image_archive(folder: Path, tag: str = "1") -> Path:
    """Make an archive of an image with a web server whose page tells the tag."""
    folder.mkdir()
    (folder / "root.tar").write_bytes(root_tar(version=f"{tag}\n"))
    layout = oci_layout([folder / "root.tar"], folder / "layout")
    index = layout / "index.json"
    content = json.loads(index.read_text())
    name = IMAGE.replace(":1", f":{tag}")
    content["manifests"][0]["annotations"] = {"io.containerd.image.name": name}
    index.write_text(json.dumps(content))
    return oci_archive(layout, folder / "image.tar")


@dataclass
class Kubectl:
    """Debian's client with a kubeconfig that we gave."""

    program: Path
    kubeconfig: Path

    @classmethod
    def of(cls, kubeconfig: Path) -> Kubectl:
        """Take Debian's, of the release that the host has."""
        program = asyncio.run(debian_program("kubernetes-client", "usr/bin/kubectl"))
        return cls(program, kubeconfig)

    @property
    def env(self) -> dict[str, str]:
        """Nothing of the user's own."""
        home = str(self.kubeconfig.parent)
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "HOME": home}

    def run(
        self, *words: str, stdin: bytes | None = None, timeout_s: float = 300
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command of it to its end."""
        return subprocess.run(
            [str(self.program), *words],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env=self.env,
            timeout=timeout_s,
            check=False,
        )

    def __call__(self, *words: str, stdin: bytes | None = None, timeout_s: float = 300) -> str:
        """Run a command that must succeed; give what it printed.

        Under emulation the API server may be too slow for kubectl's own deadlines: then again.
        """
        deadline = time.monotonic() + timeout_s
        done = self.run(*words, stdin=stdin, timeout_s=timeout_s)
        while done.returncode and _SLOW.search(done.stderr) and time.monotonic() < deadline:
            done = self.run(*words, stdin=stdin, timeout_s=timeout_s)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout.decode().strip()

    def apply(self, *documents: dict[str, object]) -> None:
        """Make objects, or change them."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
        self("apply", "--validate=false", "-f", "-", stdin=text.encode())

    @contextmanager
    def port_forward(self, target: str, port: int) -> Iterator[int]:
        """Forward a port of the host's meanwhile; give which."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            local = int(probe.getsockname()[1])
        argv = [str(self.program), "port-forward", target, f"{local}:{port}"]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=self.env) as process:
            try:
                yield local
            finally:
                process.terminate()


def deployment(name: str, replicas: int, tag: str = "1") -> dict[str, object]:
    """Describe pods that serve the version of their image."""
    labels = {"app": name}
    container = {
        "name": "web",
        "image": IMAGE.replace(":1", f":{tag}"),
        "imagePullPolicy": "Never",
        "command": ["httpd", "-f", "-p", "80", "-h", "/"],
        "ports": [{"containerPort": 80}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
            },
        },
    }


def node_port(name: str) -> dict[str, object]:
    """Describe a service by which the pods are reached from outside."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "type": "NodePort",
            "selector": {"app": name},
            "ports": [{"port": 80, "targetPort": 80}],
        },
    }
