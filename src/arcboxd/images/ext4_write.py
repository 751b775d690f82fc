"""Makes an ext4 filesystem of a tree, without mounting and without a file of the host's.

mke2fs reads the tree as a tar archive that is written to it: see `arcboxd.assets.ext4_tools`.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from arcboxd.errors import AssetBuildError, NoRoomError
from arcboxd.images.streams import CHUNK_BYTES
from arcboxd.images.tree import Node, Tree
from arcboxd.process import CommandError, writing

LEAST_BYTES = 3 << 30
"""As of Debian's images; a machine's disk is larger, and the guest grows the filesystem."""
_INODE_BYTES = 16384
"""Of the filesystem, for an inode each (mke2fs -i)."""
_JOURNAL_BYTES = 64 << 20
_BLOCK = 512
_FEATURES = "^orphan_file,^metadata_csum_seed"
"""Off: e2fsck and resize2fs of guests that are some years old refuse them."""


@dataclass(frozen=True, slots=True)
class Mke2fs:
    """How mke2fs is run; it reads tar archives since version 1.47.1."""

    argv: tuple[str, ...]
    config: str


def write(tree: Tree, target: Path, mke2fs: Mke2fs) -> int:
    """Make the filesystem, sparse; give its size in bytes.

    Raises:
        AssetBuildError: mke2fs failed.
        NoRoomError: The disk is full.
    """
    size, inodes = _size(tree)
    with target.open("xb") as file:
        file.truncate(size)
    argv = [*mke2fs.argv, "-q", "-F", "-t", "ext4", "-L", "root", "-m", "1", "-b", "4096"]
    argv += ["-N", str(inodes), "-J", f"size={_JOURNAL_BYTES >> 20}", "-O", _FEATURES]
    argv += ["-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0", "-d", "-"]
    env = {"LC_ALL": "C.UTF-8", "MKE2FS_CONFIG": mke2fs.config}
    try:
        with writing([*argv, str(target)], env) as archive:
            _write_archive(tree, archive)
    except CommandError as error:
        if "No space left" in error.stderr:
            raise NoRoomError(f"no room for the image in {target.parent}") from error
        raise AssetBuildError(f"cannot make the image's filesystem: {error}") from error
    return size


def _size(tree: Tree) -> tuple[int, int]:
    """Give the size of the filesystem, with room to boot in, and its number of inodes."""
    blocks = nodes = 0
    for path, node in tree.walk():
        nodes += 1
        blocks += -(-node.size // 4096) + 1 + len(path) // 2048
    content = blocks * 4096
    size = max(LEAST_BYTES, content + content // 4 + nodes * 256 + 4 * _JOURNAL_BYTES)
    size = -(-size // (1 << 20)) << 20
    return size, max(size // _INODE_BYTES, nodes + nodes // 4 + 4096)


def _write_archive(tree: Tree, archive: IO[bytes]) -> None:
    archive.write(_header("./", tree.root, tarfile.DIRTYPE))
    seen: dict[int, str] = {}
    for path, node in tree.walk():
        name = f"./{path}"
        match node.kind:
            case "directory":
                archive.write(_header(f"{name}/", node, tarfile.DIRTYPE))
            case "symlink":
                archive.write(_header(name, node, tarfile.SYMTYPE, node.link))
            case _ if (first := seen.setdefault(id(node), name)) != name:
                archive.write(_header(name, node, tarfile.LNKTYPE, first))
            case _:
                archive.write(_header(name, node, tarfile.REGTYPE))
                _write_content(tree, node, archive)
    archive.write(bytes(2 * _BLOCK))


def _write_content(tree: Tree, node: Node, archive: IO[bytes]) -> None:
    content = tree.content(node)
    while data := content.read(CHUNK_BYTES):
        archive.write(data)
    if content.tell() != node.size:
        raise AssetBuildError("the scratch file of the image was cut")
    archive.write(bytes(-node.size % _BLOCK))


def _header(name: str, node: Node, kind: bytes, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    # A hard link's own header sets the file's attributes again (mke2fs), so it has them all.
    info.mode, info.uid, info.gid, info.mtime = node.mode, node.uid, node.gid, node.mtime
    info.size = node.size if kind == tarfile.REGTYPE else 0
    info.pax_headers = {f"SCHILY.xattr.{k}": v for k, v in (node.xattrs or {}).items()}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
