"""Makes ``root.img``, an ext4 filesystem, of a file of whatever kind; nothing is unpacked.

This runs in a process of its own (`arcboxd.images.worker`), whose memory is bounded.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from arcboxd.errors import CorruptError, InvalidArgumentError
from arcboxd.images import ext4_write, oci, qcow2, rootfs
from arcboxd.images.copying import copy_sparse
from arcboxd.images.disks import root_filesystem
from arcboxd.images.ext4_write import Mke2fs
from arcboxd.images.formats import check_squashfs, is_tar, refuse_by_magic
from arcboxd.images.limits import Limits
from arcboxd.images.rootfs import System
from arcboxd.images.streams import Slice, Stream, compression, opened, stamp_of, whole
from arcboxd.images.tree import Tree, scratch_file
from arcboxd.process import CommandError, reading

ROOT = "root.img"
_HEAD_BYTES = 68 << 10
"""As far as the magic of any filesystem that we know lies."""

Step = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Tools:
    """How the programs are run that are not the host's."""

    mke2fs: Mke2fs
    sqfs2tar: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """What to make an image of."""

    source: Path
    """A file; or a directory, an OCI layout that we made ourselves."""
    stamp: str
    """Of the file when its digest was taken, as `stamp_of` gives it."""
    arch: str
    target: Path
    """A directory that holds nothing else."""


@dataclass(frozen=True, slots=True)
class Built:
    """What came of it."""

    virtual_bytes: int
    system: System


def build(job: Job, tools: Tools, limits: Limits, step: Step) -> Built:
    """Make the image.

    Raises:
        AssetBuildError: A program of ours failed.
        CorruptError: The file is damaged, or not the one whose digest was taken.
        InvalidArgumentError: It is no image of a Linux system.
        NoRoomError: The disk is full.
        UnsafeImageError: It has what could harm the host.
        UnsupportedError: It is of a kind, or for an architecture, that is not known.
    """
    if job.source.is_dir():
        return _Build(job, tools, limits, step).layout(oci.directory_blobs(job.source), "oci")
    fd = os.open(job.source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidArgumentError(f"{job.source} is no file")
        made = _Build(job, tools, limits, step).file(file)
        if stamp_of(os.fstat(fd)) != job.stamp:
            raise CorruptError(f"{job.source} was changed while it was read")
    return made


class _Build:
    def __init__(self, job: Job, tools: Tools, limits: Limits, step: Step) -> None:
        self._job = job
        self._tools = tools
        self._limits = limits
        self._step = step

    def file(self, file: BinaryIO) -> Built:
        source = whole(file)
        head = source.head(_HEAD_BYTES)
        refuse_by_magic(head, source)
        if head.startswith(qcow2.MAGIC):
            return self._qcow2(source)
        if head.startswith(b"hsqs"):
            return self._squashfs(source, head)
        if compression(head) or is_tar(head):
            return self._archive(source)
        return self._disk(file)

    def layout(self, blobs: oci.Blobs, layout: str) -> Built:
        """Flatten an image of layers."""
        found = oci.layers(blobs, layout, self._job.arch, self._limits)
        with scratch_file(self._job.target / "contents") as contents:
            tree = Tree(contents, self._limits)
            phrase = "putting the layers together"
            count = len(found)
            oci.flatten(
                blobs,
                found,
                tree,
                self._job.target,
                self._limits,
                lambda done: self._step(phrase, done, count),
            )
            return self._tree(tree)

    def _archive(self, source: Slice) -> Built:
        self._step("reading the archive", 0, 0)
        with scratch_file(self._job.target / "archive") as contents:
            tree = Tree(contents, self._limits)
            with opened(source, self._job.target, self._limits) as stream:
                tree.add(stream, whiteouts=False)
                stream.drain()
            if layout := oci.layout_of(tree):
                return self.layout(oci.tree_blobs(tree), layout)
            return self._tree(tree)

    def _squashfs(self, source: Slice, head: bytes) -> Built:
        self._step("reading the squashfs", 0, 0)
        check_squashfs(head, source.size, self._limits)
        with scratch_file(self._job.target / "contents") as contents:
            tree = Tree(contents, self._limits)
            try:
                with reading([*self._tools.sqfs2tar, "/dev/stdin"], source.file) as out:
                    stream = Stream(out, self._limits, lambda: source.size)
                    tree.add(stream, whiteouts=False)
            except CommandError as error:
                raise CorruptError(f"the squashfs cannot be read: {error}") from error
            return self._tree(tree)

    def _tree(self, tree: Tree) -> Built:
        system = rootfs.examine(tree, self._job.arch)
        self._step("making the filesystem", 0, 0)
        size = ext4_write.write(tree, self._job.target / ROOT, self._tools.mke2fs)
        return Built(size, system)

    def _qcow2(self, source: Slice) -> Built:
        qcow2.check(source, self._limits)
        qcow2.check_extensions(source)
        self._step("reading the qcow2 disk", 0, 0)
        raw = self._job.target / "disk.raw"
        qcow2.to_raw(source.file, raw)
        with raw.open("rb") as file:
            refuse_by_magic(whole(file).head(_HEAD_BYTES), whole(file))
            made = self._disk(file)
        raw.unlink()
        return made

    def _disk(self, file: BinaryIO) -> Built:
        if os.fstat(file.fileno()).st_size > self._limits.disk_bytes:
            raise InvalidArgumentError("the image is larger than any machine's disk")
        filesystem, offset = root_filesystem(file, self._job.arch)
        system = rootfs.examine(filesystem, self._job.arch)
        size = filesystem.superblock.total_bytes
        self._step("copying the root filesystem", 0, size)
        copy_sparse(file, offset, size, self._job.target / ROOT, self._limits, self._step)
        return Built(size, system)
