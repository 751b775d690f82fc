"""Reads ext2, ext3 and ext4 filesystems of strangers, as little of them as is needed.

Nothing is mounted, and no program sees the filesystem before a guest's kernel does. All that is
read is bounded: a damaged filesystem gives less, or `CorruptError`, never a long wait.

Source: the kernel's Documentation/filesystems/ext4.
"""
# ruff: noqa: PLR2004 - sizes and offsets are the format's

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from arcboxd.errors import CorruptError, UnsupportedError

MAGIC = 0xEF53
SUPERBLOCK_AT = 1024
_ROOT_INODE = 2
_DIRECTORY_BYTES = 16 << 20
_LINK_BYTES = 4096
_EXTENT_DEPTH = 5
_EXTENTS_FLAG = 0x80000

_META_BG, _64BIT, _JOURNAL_DEVICE = 0x10, 0x80, 0x8
_HAS_JOURNAL = 0x4
# compression is ext2's, which no kernel reads; 0x8 is an external journal, not a filesystem.
_INCOMPAT = 0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x1000 | 0x2000
_INCOMPAT |= 0x4000 | 0x10000 | 0x20000
"""What Linux 6.1 can mount, filetype to casefold; not inline_data, which we cannot read."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """What we need of a superblock, checked."""

    block_bytes: int
    blocks: int
    inodes: int
    inode_bytes: int
    inodes_per_group: int
    blocks_per_group: int
    first_data_block: int
    descriptor_bytes: int
    incompat: int
    first_meta_group: int
    label: str
    uuid: bytes

    @property
    def total_bytes(self) -> int:
        """Tell how large the filesystem is."""
        return self.blocks * self.block_bytes

    @property
    def groups(self) -> int:
        """Count the block groups."""
        return -(-(self.blocks - self.first_data_block) // self.blocks_per_group)


def is_ext4(head: bytes) -> bool:
    """Tell whether a filesystem's first 2048 bytes are those of an ext2, ext3 or ext4."""
    return head[1080:1082] == MAGIC.to_bytes(2, "little")


def superblock(head: bytes, room_bytes: int) -> Superblock:
    """Read and check a filesystem's superblock.

    Args:
        head: The filesystem's first 2048 bytes.
        room_bytes: How large the partition or file is.

    Raises:
        CorruptError: It is no sound ext2, ext3 or ext4.
        UnsupportedError: It has features that guests cannot mount.
    """
    raw = head[SUPERBLOCK_AT : SUPERBLOCK_AT + 1024]
    if len(raw) < 1024 or not is_ext4(head):
        raise CorruptError("the image's root is no ext4 filesystem")

    def word(offset: int) -> int:
        return int.from_bytes(raw[offset : offset + 4], "little")

    def half(offset: int) -> int:
        return int.from_bytes(raw[offset : offset + 2], "little")

    incompat, log = word(0x60), word(0x18)
    if incompat & _JOURNAL_DEVICE or incompat & ~_INCOMPAT:
        raise UnsupportedError(
            f"the image's filesystem has features that guests cannot mount ({incompat:#x})",
            hint="give its root as a tar archive instead",
        )
    if word(0x5C) & _HAS_JOURNAL and word(0xE0) == 0:
        raise UnsupportedError(
            "the image's filesystem has its journal on another disk",
            hint="give it an internal one: tune2fs -O ^has_journal, then tune2fs -j",
        )
    wide = bool(incompat & _64BIT)
    found = Superblock(
        block_bytes=1024 << log if log <= 6 else 0,
        blocks=word(0x4) | (word(0x150) << 32 if wide else 0),
        inodes=word(0x0),
        inode_bytes=half(0x58) if word(0x4C) else 128,
        inodes_per_group=word(0x28),
        blocks_per_group=word(0x20),
        first_data_block=word(0x14),
        descriptor_bytes=half(0xFE) if wide else 32,
        incompat=incompat,
        first_meta_group=word(0x104),
        label=raw[0x78:0x88].split(b"\0")[0].decode(errors="replace"),
        uuid=raw[0x68:0x78],
    )
    if why := _unsound(found, room_bytes):
        raise CorruptError(f"the image's filesystem is damaged: {why}")
    return found


def _unsound(s: Superblock, room_bytes: int) -> str:  # noqa: PLR0911 - one a refusal
    if not s.block_bytes:
        return "its block size cannot be"
    bits = 8 * s.block_bytes
    if not 128 <= s.inode_bytes <= s.block_bytes or s.inode_bytes & (s.inode_bytes - 1):
        return "its inode size cannot be"
    if not 32 <= s.descriptor_bytes <= 1024 or s.descriptor_bytes & (s.descriptor_bytes - 1):
        return "its descriptor size cannot be"
    if not 0 < s.inodes_per_group <= bits or not 0 < s.blocks_per_group <= bits:
        return "its groups cannot be of that size"
    if s.first_data_block != (s.block_bytes == 1024) or s.blocks <= s.first_data_block:
        return "its first block is not where it should be"
    if s.total_bytes > room_bytes:
        return "it is larger than its partition or its file"
    if not 0 < s.inodes <= s.inodes_per_group * s.groups:
        return "it has no such number of inodes"
    return ""


@dataclass(frozen=True, slots=True)
class Inode:
    """A file, directory or link of the filesystem."""

    mode: int
    flags: int
    size: int
    blocks: bytes
    """Its sixty bytes of block map, extents, or of a short link's target."""


class Ext4:
    """A filesystem to look at; gives `arcboxd.images.rootfs` its files."""

    def __init__(self, file: BinaryIO, offset: int, room_bytes: int) -> None:
        """Read the superblock and the root.

        Raises:
            CorruptError: It is no sound filesystem.
            UnsupportedError: Guests cannot mount it.
        """
        self._fd = file.fileno()
        self._offset = offset
        self.superblock = superblock(os.pread(self._fd, 2048, offset), room_bytes)
        self.root = self._inode(_ROOT_INODE)
        if self.kind(self.root) != "directory":
            raise CorruptError("the image's filesystem is damaged: its root is no directory")

    def child(self, node: Inode, name: str) -> Inode | None:
        """Give what a directory has under a name."""
        wanted = name.encode(errors="surrogateescape")
        return next((self._inode(n) for found, n in self._entries(node) if found == wanted), None)

    def names(self, node: Inode) -> list[str]:
        """List a directory."""
        return [name.decode(errors="surrogateescape") for name, _ in self._entries(node)]

    def kind(self, node: Inode) -> str:
        """Tell what an inode is."""
        kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
        return kinds.get(stat.S_IFMT(node.mode), "other")

    def link(self, node: Inode) -> str:
        """Tell where a symbolic link points."""
        if node.size < len(node.blocks) and not node.flags & _EXTENTS_FLAG:
            return node.blocks[: node.size].decode(errors="surrogateescape")
        return self.head(node, min(node.size, _LINK_BYTES)).decode(errors="surrogateescape")

    def head(self, node: Inode, count: int) -> bytes:
        """Give a file's first bytes."""
        return b"".join(self.content(node, min(count, node.size)))[:count]

    def content(self, node: Inode, count: int) -> Iterator[bytes]:
        """Give a file's first bytes, block by block; holes are zeros."""
        size = self.superblock.block_bytes
        for index in range(-(-count // size)):
            block = self._block_of(node, index)
            yield (self._block(block) if block else bytes(size))[: count - index * size]

    def _entries(self, node: Inode) -> Iterator[tuple[bytes, int]]:
        if node.size > _DIRECTORY_BYTES:
            raise CorruptError("the image's filesystem has a directory of a size that cannot be")
        for data in self.content(node, node.size):
            at = 0
            while at + 8 <= len(data):
                number, length, named = struct.unpack_from("<IHB", data, at)
                if length < 8 or length % 4 or at + length > len(data):
                    break
                if number and named and named <= length - 8:
                    yield data[at + 8 : at + 8 + named], number
                at += length

    def _inode(self, number: int) -> Inode:
        s = self.superblock
        if not 0 < number <= s.inodes:
            raise CorruptError("the image's filesystem is damaged: an inode's number cannot be")
        group, index = divmod(number - 1, s.inodes_per_group)
        table = self._inode_table(group)
        at = table * s.block_bytes + index * s.inode_bytes
        raw = os.pread(self._fd, 128, self._offset + at)
        if not 0 < table < s.blocks or len(raw) < 128:
            raise CorruptError("the image's filesystem is damaged: an inode is outside of it")
        mode, size_low = struct.unpack_from("<H2xI", raw)
        (flags,) = struct.unpack_from("<I", raw, 0x20)
        (size_high,) = struct.unpack_from("<I", raw, 0x6C)
        size = size_low | (size_high << 32 if stat.S_ISREG(mode) else 0)
        return Inode(mode, flags, size, raw[0x28:0x64])

    def _inode_table(self, group: int) -> int:
        s = self.superblock
        per_block = s.block_bytes // s.descriptor_bytes
        block = s.first_data_block + 1 + group // per_block
        if s.incompat & _META_BG and group // per_block >= s.first_meta_group:
            # The descriptors of each such group are in its own first block, behind a superblock.
            first = group // per_block * per_block
            copy = first in {0, 1} or any(_power(first, n) for n in (3, 5, 7))
            block = s.first_data_block + first * s.blocks_per_group + copy
        raw = os.pread(
            self._fd,
            s.descriptor_bytes,
            self._offset + block * s.block_bytes + group % per_block * s.descriptor_bytes,
        )
        if len(raw) < s.descriptor_bytes:
            raise CorruptError("the image's filesystem is damaged: it ends before its descriptors")
        low = int.from_bytes(raw[8:12], "little")
        high = int.from_bytes(raw[0x28:0x2C], "little") if s.descriptor_bytes >= 64 else 0
        return low | high << 32

    def _block(self, number: int) -> bytes:
        s = self.superblock
        data = os.pread(self._fd, s.block_bytes, self._offset + number * s.block_bytes)
        if not 0 < number < s.blocks or len(data) < s.block_bytes:
            raise CorruptError("the image's filesystem is damaged: a block is outside of it")
        return data

    def _block_of(self, node: Inode, index: int) -> int:
        """Give the number of a file's block; 0 for a hole."""
        if node.flags & _EXTENTS_FLAG:
            return self._by_extents(node.blocks, index)
        return self._by_map(node.blocks, index)

    def _by_extents(self, data: bytes, index: int) -> int:
        for _ in range(_EXTENT_DEPTH + 1):
            magic, count, _max, depth = struct.unpack_from("<4H", data)
            if magic != 0xF30A or 12 + 12 * count > len(data):
                raise CorruptError("the image's filesystem is damaged: an extent tree is none")
            rows = [data[12 + 12 * i : 24 + 12 * i] for i in range(count)]
            if depth == 0:
                return _extent(rows, index)
            below = [row for row in rows if int.from_bytes(row[:4], "little") <= index]
            if not below:
                return 0
            low, high = struct.unpack_from("<IH", below[-1], 4)
            data = self._block(low | high << 32)
        raise CorruptError("the image's filesystem is damaged: an extent tree is too deep")

    def _by_map(self, data: bytes, index: int) -> int:
        direct, per_block = 12, self.superblock.block_bytes // 4
        if index < direct:
            return int.from_bytes(data[4 * index : 4 * index + 4], "little")
        index -= direct
        for level in range(1, 4):
            span = per_block**level
            if index < span:
                slot = 4 * (direct + level - 1)
                block = int.from_bytes(data[slot : slot + 4], "little")
                while block and span > 1:
                    span //= per_block
                    slot, index = 4 * (index // span), index % span
                    block = int.from_bytes(self._block(block)[slot : slot + 4], "little")
                return block
            index -= span
        return 0


def _extent(rows: list[bytes], index: int) -> int:
    for row in rows:
        first, length, high, low = struct.unpack("<IHHI", row)
        written = length <= 0x8000
        length = length if written else length - 0x8000
        if first <= index < first + length:
            return (low | high << 32) + index - first if written else 0
    return 0


def _power(number: int, base: int) -> bool:
    while number > 1 and number % base == 0:
        number //= base
    return number == 1
