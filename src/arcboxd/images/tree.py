"""The files of an image as a tree in memory, their contents in one scratch file.

Layers are put over each other as the OCI image specification says (layer.md, "Applying
Changesets"). Nothing here is a file of the host's, so a name in an image can lead nowhere.
"""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from arcboxd.errors import UnsafeImageError
from arcboxd.images.limits import Limits
from arcboxd.images.members import Member, members, split
from arcboxd.images.streams import Slice, Stream

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


class Node:
    """A file, directory or symbolic link; a file with several names is one node."""

    __slots__ = (
        *("children", "gid", "kind", "layer", "link", "mode", "mtime"),
        *("offset", "size", "uid", "xattrs"),
    )

    def __init__(self, kind: str, layer: int) -> None:
        """Make one that is root's, and empty."""
        self.kind = kind
        self.layer = layer
        """The last one that has it or something below it."""
        self.mode = 0o755
        self.uid = 0
        self.gid = 0
        self.mtime = 0
        self.link = ""
        self.offset = 0
        self.size = 0
        self.xattrs: dict[str, str] | None = None
        self.children: dict[str, Node] | None = {} if kind == "directory" else None


class Tree:
    """What an image comes to; the layers are added from the lowest up."""

    def __init__(self, contents: BinaryIO, limits: Limits) -> None:
        """Begin with an empty root; ``contents`` is an empty file to read and write."""
        self.root = Node("directory", 0)
        self.count = 0
        self._contents = contents
        self._limits = limits
        self._layer = 0
        self._written = 0

    def add(self, stream: Stream, *, whiteouts: bool) -> None:
        """Put an archive over what is there.

        Args:
            stream: The archive, unpacked.
            whiteouts: Names that begin with ``.wh.`` remove what lower layers have.

        Raises:
            CorruptError: The archive is damaged.
            UnsafeImageError: It has what no image needs.
        """
        self._layer += 1
        for member in members(stream, self._limits):
            self.count += 1
            self._limits.check_members(self.count)
            if not (whiteouts and self._removed(member)):
                self._put(member, stream)
        self._contents.flush()

    def content(self, node: Node) -> Slice:
        """Give what a file holds."""
        return Slice(self._contents, node.offset, node.size)

    # As `arcboxd.images.rootfs` wants it.

    def child(self, node: Node, name: str) -> Node | None:
        """Give what a directory has under a name."""
        return (node.children or {}).get(name)

    def kind(self, node: Node) -> str:
        """Tell what a node is."""
        return node.kind

    def link(self, node: Node) -> str:
        """Tell where a symbolic link points."""
        return node.link

    def head(self, node: Node, count: int) -> bytes:
        """Give a file's first bytes."""
        return self.content(node).head(count)

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Give every node but the root, each directory before what is in it."""
        pending = [("", self.root)]
        while pending:
            prefix, folder = pending.pop()
            for name, node in sorted((folder.children or {}).items()):
                path = f"{prefix}{name}"
                yield path, node
                if node.children is not None:
                    pending.append((f"{path}/", node))

    def _put(self, member: Member, stream: Stream) -> None:
        if not member.parts:
            _describe(self.root, member)
            return
        folder, name = self._folder(member.parts), member.parts[-1]
        there = (folder.children or {}).get(name)
        if there is not None and there.layer == self._layer and there.kind != _kind_of(member):
            raise UnsafeImageError(
                f"{_path(member)!r} is in the image twice, as a {there.kind} and as a {member.kind}"
            )
        if member.kind == "directory" and there is not None and there.kind == "directory":
            node = there
        elif member.kind == "hardlink":
            node = self._target(member)
        else:
            node = Node(member.kind, self._layer)
        if member.kind != "hardlink":
            _describe(node, member)
        node.layer = self._layer
        if member.kind == "file":
            self._limits.check_total(self._written + member.size)
            node.offset, node.size = self._written, member.size
            for data in stream.chunks(member.size):
                self._contents.write(data)
            self._written += member.size
        _children(folder)[name] = node

    def _folder(self, parts: tuple[str, ...]) -> Node:
        """Give the directory of a name, making what is missing on the way."""
        node = self.root
        for name in parts[:-1]:
            found = _children(node).get(name)
            if found is None:
                self.count += 1
                found = _children(node)[name] = Node("directory", self._layer)
            if found.children is None:
                raise UnsafeImageError(
                    f"{'/'.join(parts)[:80]!r} in the image goes through the {found.kind} {name!r}"
                )
            found.layer = self._layer
            node = found
        return node

    def _target(self, member: Member) -> Node:
        """Give what a hard link is another name of."""
        node: Node | None = self.root
        for name in split(member.link, "the hard link's target"):
            if node is not None and node.children is None:
                raise UnsafeImageError(
                    f"the hard link {_path(member)!r} in the image goes through a {node.kind}"
                )
            node = None if node is None else _children(node).get(name)
        if node is None or node.kind == "directory":
            what = "nothing" if node is None else "a directory"
            raise UnsafeImageError(f"the hard link {_path(member)!r} in the image is of {what}")
        # A lower layer's file is copied, as overlays do: this layer may remove its first name.
        return node if node.layer == self._layer else copy.copy(node)

    def _removed(self, member: Member) -> bool:
        """Remove what a whiteout names; tell whether it is one."""
        if not member.parts or not member.parts[-1].startswith(_WHITEOUT):
            return False
        name = member.parts[-1]
        folder: Node | None = self.root
        for part in member.parts[:-1]:
            folder = None if folder is None else self.child(folder, part)
            if folder is not None and folder.children is None:
                raise UnsafeImageError(
                    f"{_path(member)!r} in the image goes through the {folder.kind} {part!r}"
                )
        hidden = name.removeprefix(_WHITEOUT)
        if name == _OPAQUE:
            if folder is not None:
                self._purge(folder)
        elif hidden in {"", ".", ".."}:
            raise UnsafeImageError(f"{_path(member)!r} in the image removes nothing")
        elif not hidden.startswith(_WHITEOUT) and folder is not None:
            there = self.child(folder, hidden)
            if there is not None and there.layer < self._layer:
                del _children(folder)[hidden]
            elif there is not None:
                self._purge(there)
        return True

    def _purge(self, folder: Node) -> None:
        """Remove what lower layers have in a directory."""
        pending = [folder]
        while pending:
            children = pending.pop().children or {}
            for name, node in list(children.items()):
                if node.layer < self._layer:
                    del children[name]
                elif node.children is not None:
                    pending.append(node)


def scratch_file(path: Path) -> BinaryIO:
    """Make a file that is gone once it is closed."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    path.unlink()
    return io.BufferedRandom(io.FileIO(fd, "r+b"), 1 << 20)


def _children(folder: Node) -> dict[str, Node]:
    if folder.children is None:
        raise UnsafeImageError("something in the image is in a file")
    return folder.children


def _kind_of(member: Member) -> str:
    return "file" if member.kind == "hardlink" else member.kind


def _path(member: Member) -> str:
    return "/".join(member.parts)[:80]


def _describe(node: Node, member: Member) -> None:
    node.mode, node.uid, node.gid, node.mtime = member.mode, member.uid, member.gid, member.mtime
    node.xattrs = member.xattrs or None
    node.link = member.link
