"""The image of pods' first process, made of a static program; the same bytes for the same program.

Source: https://github.com/opencontainers/image-spec (image-layout.md, manifest.md, config.md).
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

NAME = "arcbox.local/pause:1"
"""What containerd calls it; a name that no registry answers to."""

_ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}
_MEDIA = "application/vnd.oci.image"


def write_pause_image(program: Path, target: Path, arch: str) -> None:
    """Write an OCI archive with one layer, which has the program at ``/pause``.

    Args:
        program: A static program.
        target: The archive.
        arch: The kernel's name of the architecture.
    """
    layer = _tar({"pause": program.read_bytes()}, mode=0o755)
    config = _json(
        {
            "architecture": _ARCHES[arch],
            "os": "linux",
            "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}.manifest.v1+json",
            "config": _descriptor(config, "config.v1+json"),
            "layers": [_descriptor(layer, "layer.v1.tar")],
        }
    )
    named = {
        **_descriptor(manifest, "manifest.v1+json"),
        "annotations": {
            "io.containerd.image.name": NAME,
            "org.opencontainers.image.ref.name": NAME.rpartition(":")[2],
        },
    }
    files = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "manifests": [named]}),
    }
    files |= {f"blobs/sha256/{_digest(b)[7:]}": b for b in (layer, config, manifest)}
    target.write_bytes(_tar(files, mode=0o644))


def _tar(files: dict[str, bytes], mode: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _descriptor(data: bytes, kind: str) -> dict[str, object]:
    return {"mediaType": f"{_MEDIA}.{kind}", "digest": _digest(data), "size": len(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
