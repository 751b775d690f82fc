"""Grows the root filesystem while it is mounted."""

# pathlib is not imported: start-up takes long under emulation.
# ruff: noqa: PTH115, PTH119, PTH123

from __future__ import annotations

import fcntl
import logging
import os
import struct

from arcbox_agent.mounts import read_mounts

_EXT4_IOC_RESIZE_FS = 0x40086610
_SECTOR_BYTES = 512
_MARGIN_BYTES = 1024 * 1024  # less is not worth it, and may be no whole block group
_SUPERBLOCK_AT = 1024
_MAGIC = 0xEF53
_INCOMPAT_64BIT = 0x80

_log = logging.getLogger(__name__)


def grow_root() -> None:
    """Grow the ext4 filesystem on / to the size of its device, if it is smaller. Blocks.

    Raises:
        OSError: The kernel refused.
    """
    mount = next((each for each in reversed(read_mounts()) if each.target == "/"), None)
    if mount is None or mount.filesystem != "ext4" or not mount.writable:
        return
    with open(f"/sys/dev/block/{mount.device}/size", encoding="ascii") as file:
        device_bytes = int(file.read()) * _SECTOR_BYTES
    with open(_device(mount.device), "rb", buffering=0) as file:
        file.seek(_SUPERBLOCK_AT)
        blocks, block_bytes = parse_superblock(file.read(1024))
    if device_bytes < blocks * block_bytes + _MARGIN_BYTES:
        return
    fd = os.open("/", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _EXT4_IOC_RESIZE_FS, struct.pack("=Q", device_bytes // block_bytes))
    finally:
        os.close(fd)
    _log.info("grew / from %d to %d bytes", blocks * block_bytes, device_bytes)


def parse_superblock(data: bytes) -> tuple[int, int]:
    """Find the number of blocks and the bytes of one in an ext4 superblock.

    Raises:
        OSError: It is none.

    Source: Documentation/filesystems/ext4/super.rst.
    """
    low, log_size = struct.unpack_from("<4xI16xI", data)
    (magic,) = struct.unpack_from("<H", data, 0x38)
    if magic != _MAGIC:
        raise OSError("the root device has no ext4 superblock")
    (incompatible,) = struct.unpack_from("<I", data, 0x60)
    (high,) = struct.unpack_from("<I", data, 0x150)
    blocks = low | (high << 32 if incompatible & _INCOMPAT_64BIT else 0)
    return blocks, 1024 << log_size


def _device(numbers: str) -> str:
    """Find the node of a device by its numbers: /proc may call it /dev/root, which there is not."""
    return "/dev/" + os.path.basename(os.readlink(f"/sys/dev/block/{numbers}"))
