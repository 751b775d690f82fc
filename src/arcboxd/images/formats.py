"""What a file is by its first bytes, and what is refused because of them."""
# ruff: noqa: PLR2004 - sizes and offsets are the format's

from __future__ import annotations

import struct

from arcboxd.errors import CorruptError, UnsafeImageError, UnsupportedError
from arcboxd.images.limits import Limits
from arcboxd.images.streams import Slice

_CONVERT = "make it one with: qemu-img convert -O qcow2 OLD NEW"
_TARBALL = "give its root as a tar archive instead: tar --numeric-owner --xattrs -C ROOT -cf FILE ."
_REFUSED = (
    (0, b"KDMV", "a VMDK disk", _CONVERT),
    (0, b"COWD", "a VMDK disk", _CONVERT),
    (0, b"# Disk DescriptorFile", "a VMDK disk", _CONVERT),
    (0, b"vhdxfile", "a VHDX disk", _CONVERT),
    (0, b"conectix", "a VHD disk", _CONVERT),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI disk", _CONVERT),
    (0, b"QED\0", "a QED disk", _CONVERT),
    (0, b"WithoutFreeSpace", "a Parallels disk", _CONVERT),
    (0x8001, b"CD001", "an ISO image", "install from it into a disk image, and import that"),
    (0, b"LUKS\xba\xbe", "an encrypted disk", "give it decrypted"),
    (0, b"XFSB", "an XFS filesystem", _TARBALL),
    (0x10040, b"_BHRfS_M", "a Btrfs filesystem", _TARBALL),
    (0x400, b"\x10\x20\xf5\xf2", "an F2FS filesystem", _TARBALL),
    (0x400, b"\xe2\xe1\xf5\xe0", "an EROFS filesystem", _TARBALL),
    (0x218, b"LVM2 001", "a volume of LVM", _TARBALL),
    (0, b"070701", "a cpio archive", _TARBALL),
    (0, b"PK\x03\x04", "a ZIP archive", _TARBALL),
)
_SQUASHFS = "<5I6H8Q"
_SQUASHFS_COMPRESSIONS = range(1, 7)


def refuse_by_magic(head: bytes, source: Slice) -> None:
    """Refuse a file of a kind that is known, and that is no image of ours.

    Raises:
        UnsupportedError: It is one.
    """
    for offset, magic, what, hint in _REFUSED:
        if head[offset : offset + len(magic)] == magic:
            raise UnsupportedError(f"the image is {what}, which cannot be used", hint=hint)
    if source.size >= 512:
        tail = Slice(source.file, source.begin + source.size - 512, 512).head(8)
        if tail == b"conectix":
            raise UnsupportedError("the image is a VHD disk, which cannot be used", hint=_CONVERT)
    if not head.strip(b"\0"):
        raise CorruptError("the image begins with nothing but zeros")


def is_tar(head: bytes) -> bool:
    """Tell whether a file is a tar archive, of whatever age."""
    if head[257:262] == b"ustar":
        return True
    # Archives before POSIX have no magic: the checksum of the first header must do.
    block = head[:512]
    try:
        told = int(block[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return len(block) == 512 and told == 256 + sum(block[:148]) + sum(block[156:])


def check_squashfs(head: bytes, size: int, limits: Limits) -> None:
    """Check a squashfs's superblock before a program reads the rest.

    Raises:
        CorruptError: It is damaged.
        UnsafeImageError: It has more files than an image may have.
        UnsupportedError: It is of another version.

    Source: the kernel's Documentation/filesystems/squashfs.rst.
    """
    if len(head) < struct.calcsize(_SQUASHFS):
        raise CorruptError("the squashfs ends too early")
    fields = struct.unpack_from(_SQUASHFS, head)
    _, inodes, _, block_bytes, fragments = fields[:5]
    kind, block_log, _, _, major, minor = fields[5:11]
    _, used, *tables = fields[11:19]
    if (major, minor) != (4, 0) or kind not in _SQUASHFS_COMPRESSIONS:
        raise UnsupportedError(f"the squashfs is of version {major}.{minor}, not 4.0")
    if not 12 <= block_log <= 20 or block_bytes != 1 << block_log:
        raise CorruptError("the squashfs is damaged: its block size cannot be")
    if not 96 <= used <= size or fragments > size:
        raise CorruptError("the squashfs is damaged: it is larger than its file")
    # The inodes' and the directories' tables are always there; others are all ones when missing.
    if any(at != (1 << 64) - 1 and at >= used for at in tables):
        raise CorruptError("the squashfs is damaged: a table is not in it")
    if inodes > limits.members:
        raise UnsafeImageError(f"the squashfs has more than {limits.members} files")
