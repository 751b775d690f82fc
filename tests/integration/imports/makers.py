"""Images made for tests: tar archives, layers, qcow2 files, disks and filesystems, byte by byte."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import tarfile
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, 62) + bytes(44)
"""The first bytes of a program for x86_64."""
ARM_ELF = ELF[:18] + struct.pack("<H", 183) + ELF[20:]
RELEASE = b'NAME="Test Linux"\nID=testos\nVERSION_ID="1.2"\n'
MIB = 1 << 20


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: object) -> bytes:
    """Give a member of a tar archive, whatever its name."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(data), 0o755
    for key, value in fields.items():
        setattr(info, key, value)
    header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    return header + data + bytes(-len(data) % 512)


def records(**pairs: str) -> bytes:
    """Give an extended header with these records."""
    data = b""
    for key, value in pairs.items():
        body = f" {key.replace('__', '.')}={value}\n".encode()
        size = len(body) + 1
        while len(str(size)) + len(body) != size:
            size += 1
        data += str(size).encode() + body
    return member("x", tarfile.XHDTYPE, data)


def archive(*members: bytes) -> bytes:
    """End an archive."""
    return b"".join(members) + bytes(1024)


def system(*more: bytes) -> bytes:
    """Give the archive of a small system, and what else is to be in it."""
    return archive(
        member("./", tarfile.DIRTYPE),
        member("./etc", tarfile.DIRTYPE),
        member("./etc/os-release", data=RELEASE, mode=0o644),
        member("./bin", tarfile.DIRTYPE),
        member("./bin/sh", data=ELF),
        *more,
    )


class Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def bomb(compressor: Compressor, size: int = 80 * MIB) -> bytes:
    """Give a small archive of a system that has a file of zeros, without ever holding them."""
    info = tarfile.TarInfo("zero")
    info.size = size
    packed = [compressor.compress(system()[:-1024] + info.tobuf())]
    packed += [compressor.compress(bytes(MIB)) for _ in range(size // MIB)]
    return b"".join([*packed, compressor.compress(bytes(1024)), compressor.flush()])


class Layout:
    """An OCI layout to be, as a mapping of names to contents."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}

    def blob(self, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        self.files[f"blobs/sha256/{digest}"] = data
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def json(self, document: object) -> dict[str, object]:
        return self.blob(json.dumps(document).encode())

    def image(
        self,
        layers: list[bytes],
        *,
        config: Mapping[str, object] | None = None,
        layer: Mapping[str, object] | None = None,
        manifest: Mapping[str, object] | None = None,
        entry: Mapping[str, object] | None = None,
    ) -> Layout:
        """Add an image; what is given is put over what would be right."""
        diffs = [f"sha256:{hashlib.sha256(each).hexdigest()}" for each in layers]
        kind = "application/vnd.oci.image.layer.v1.tar"
        rows = [{"mediaType": kind, **self.blob(each), **(layer or {})} for each in layers]
        whole = {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diffs},
            **(config or {}),
        }
        described = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self.json(whole),
            "layers": rows,
            **(manifest or {}),
        }
        platform = {"architecture": "amd64", "os": "linux"}
        self.index([{**self.json(described), "platform": platform, **(entry or {})}])
        return self

    def index(self, manifests: object) -> Layout:
        index = {"schemaVersion": 2, "manifests": manifests}
        self.files["index.json"] = json.dumps(index).encode()
        return self

    def tar(self) -> bytes:
        return archive(*(member(name, data=data) for name, data in self.files.items()))

    def write(self, target: Path) -> Path:
        for name, data in self.files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(data)
        return target


def ext4(path: Path, size: int = 32 * MIB) -> Path:
    """Make an empty filesystem."""
    with path.open("wb") as file:
        file.truncate(size)
    path_env = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-J", "size=4", str(path)]
    subprocess.run(argv, check=True, env=path_env)
    return path


def mbr(partitions: list[tuple[int, int, int]], contents: dict[int, bytes], size: int) -> bytes:
    """Make a disk with a table of (type, first sector, sectors), and contents by sector."""
    table = b"".join(
        struct.pack("<B3xB3xII", 0, kind, begin, count) for kind, begin, count in partitions
    )
    disk = bytearray(size)
    disk[446:510] = table.ljust(64, b"\0")
    disk[510:512] = b"\x55\xaa"
    for sector, data in contents.items():
        disk[sector * 512 : sector * 512 + len(data)] = data
    return bytes(disk)


ROOT_X86_64 = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")


def gpt(
    partitions: list[tuple[uuid.UUID, int, int, str]],
    contents: dict[int, bytes],
    size: int,
    *,
    count: int = 128,
) -> bytes:
    """Make a disk with a GPT of (type, first, last, name)."""
    entries = b"".join(
        struct.pack("<16s16sQQQ72s", kind.bytes_le, uuid.uuid4().bytes, first, last, 0, label)
        for kind, first, last, name in partitions
        for label in [name.encode("utf-16-le")]
    ).ljust(128 * 128, b"\0")
    checksum = zlib.crc32(entries[: count * 128])
    header = struct.pack(
        "<8sIIIIQQQQ16sQIII",
        *(b"EFI PART", 0x10000, 92, 0, 0, 1, size // 512 - 1, 34, size // 512 - 34),
        *(uuid.uuid4().bytes, 2, count, 128, checksum),
    )
    header = header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]
    return mbr([(0xEE, 1, size // 512 - 1)], {1: header, 2: entries, **contents}, size)


def qcow2(
    *,
    size: int = 64 * MIB,
    bits: int = 16,
    version: int = 3,
    backing: bytes = b"",
    crypt: int = 0,
    incompatible: int = 0,
    l1_count: int | None = None,
    l1_at: int = 3 << 16,
    snapshots: int = 0,
    extensions: bytes = b"",
    l1: bytes = b"",
    rest: bytes = b"",
    header_bytes: int = 104,
) -> bytes:
    """Make a file whose header says this, with a table at cluster 3 and what follows it."""
    count = -(-size // (1 << (2 * bits - 3))) if l1_count is None else l1_count
    name_at = 512 if backing else 0
    header = struct.pack(
        ">4sIQIIQIIQQIIQ",
        *(b"QFI\xfb", version, name_at, len(backing), bits, size, crypt, count, l1_at),
        *(1 << 16, 1, snapshots, 0),
    )
    header += struct.pack(">QQQII", incompatible, 0, 0, 4, header_bytes)
    data = bytearray(4 << 16)
    data[: len(header)] = header
    data[104 : 104 + len(extensions)] = extensions
    data[512 : 512 + len(backing)] = backing
    data[3 << 16 : (3 << 16) + len(l1)] = l1
    return bytes(data) + rest
