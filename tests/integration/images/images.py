"""Container images made by tests, and a client that pushes them to a registry."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from typing import Any

import httpx2

OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer(name: str, content: bytes) -> bytes:
    """Give a compressed layer with one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


@dataclass
class Image:
    """Blobs by digest, and the manifests that name them."""

    docker: bool = False
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """Type and content, by digest."""

    def blob(self, data: bytes, media_type: str, **more: object) -> dict[str, Any]:
        self.blobs[digest_of(data)] = data
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **more}

    def add(self, arch: str, layers: list[bytes], changes: dict[str, Any] | None = None) -> str:
        """Add a manifest for a platform and give its digest."""
        kinds = (
            (
                f"{DOCKER}.container.image.v1+json",
                f"{DOCKER}.image.rootfs.diff.tar.gzip",
                f"{DOCKER}.distribution.manifest.v2+json",
            )
            if self.docker
            else (
                f"{OCI}.config.v1+json",
                f"{OCI}.layer.v1.tar+gzip",
                f"{OCI}.manifest.v1+json",
            )
        )
        config = json.dumps({"os": "linux", "architecture": arch, "rootfs": {}}).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": kinds[2],
            "config": self.blob(config, kinds[0]),
            "layers": [self.blob(data, kinds[1]) for data in layers],
            **(changes or {}),
        }
        return self.document(manifest, kinds[2])

    def index(self, manifests: dict[str, str]) -> str:
        """Add an index of manifests, digests by architecture, and give its digest."""
        kind = (
            f"{DOCKER}.distribution.manifest.list.v2+json"
            if self.docker
            else f"{OCI}.index.v1+json"
        )
        entries = [
            {
                "mediaType": self.manifests[digest][0],
                "digest": digest,
                "size": len(self.manifests[digest][1]),
                "platform": {"os": "linux", "architecture": arch},
            }
            for arch, digest in manifests.items()
        ]
        return self.document({"schemaVersion": 2, "mediaType": kind, "manifests": entries}, kind)

    def document(self, content: dict[str, Any], kind: str) -> str:
        data = json.dumps(content).encode()
        self.manifests[digest_of(data)] = kind, data
        return digest_of(data)


async def push(image: Image, url: str, repository: str, tags: dict[str, str]) -> None:
    """Push all blobs and manifests, then name some digests by tags."""
    async with httpx2.AsyncClient(base_url=f"{url}/v2/{repository}") as client:
        for digest, data in image.blobs.items():
            begun = await client.post("blobs/uploads/")
            begun.raise_for_status()
            place = begun.headers["location"]
            joint = "&" if "?" in place else "?"
            done = await client.put(f"{place}{joint}digest={digest}", content=data)
            done.raise_for_status()
        for name, digest in (*((d, d) for d in image.manifests), *tags.items()):
            kind, data = image.manifests[digest]
            sent = await client.put(
                f"manifests/{name}", content=data, headers={"Content-Type": kind}
            )
            sent.raise_for_status()
