"""A kernel is unpacked whole, or refused."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess
from collections.abc import Callable

import pytest

from arcboxd.assets.vmlinux import extract_image, extract_vmlinux, is_elf
from arcboxd.errors import CorruptError, UnsupportedError

ELF = b"\x7fELF" + bytes(range(256)) * 64
SIZE = struct.pack("<I", len(ELF))


def bz_image(payload: bytes, *, version: int = 0x20F) -> bytes:
    """Make the parts of a bzImage that count."""
    setup = bytearray(5 * 512)
    setup[0x1F1] = 4
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    struct.pack_into("<II", setup, 0x248, 32, len(payload))
    return bytes(setup) + bytes(32) + payload + bytes(100)


def by_tool(*argv: str) -> Callable[[bytes], bytes]:
    return lambda data: subprocess.run(argv, input=data, capture_output=True, check=True).stdout


def lz4_size(data: bytes) -> bytes:
    return by_tool("lz4", "-lzq")(data) + SIZE


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32) + SIZE,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE) + SIZE,
    "zstd": lambda data: by_tool("zstd", "-q")(data) + SIZE,
    "lz4": lz4_size,
    "none": lambda data: data + SIZE,
}


@pytest.mark.parametrize("name", PACKERS)
def test_every_packing_is_unpacked(name: str) -> None:
    if name in {"zstd", "lz4"} and shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    image = bz_image(PACKERS[name](ELF))
    assert not is_elf(image)
    assert extract_vmlinux(image) == ELF


@pytest.mark.parametrize("name", ["gzip", "xz", "lzma", "zstd", "none"])
@pytest.mark.parametrize("harm", ["cut", "size", "noise", "no elf"])
def test_damage_is_noticed(name: str, harm: str) -> None:
    payload = PACKERS[name](b"MZ" + ELF[2:] if harm == "no elf" else ELF)
    match harm:
        case "cut":
            image = bz_image(payload)[: 5 * 512 + 32 + len(payload) // 2]
        case "size":
            image = bz_image(payload[:-4] + struct.pack("<I", len(ELF) + 1))
        case "noise":
            middle = len(payload) // 2
            image = bz_image(payload[:middle] + payload[middle + 9 :])
        case _:
            image = bz_image(payload)
    with pytest.raises((CorruptError, UnsupportedError)):
        extract_vmlinux(image)


def test_what_is_no_kernel_is_refused() -> None:
    with pytest.raises(CorruptError, match="setup header"):
        extract_vmlinux(b"not a kernel" * 100)
    with pytest.raises(CorruptError):
        extract_vmlinux(b"")
    with pytest.raises(UnsupportedError, match="unknown way"):
        extract_vmlinux(bz_image(b"????????????????" + SIZE))
    with pytest.raises(UnsupportedError, match="too old"):
        extract_vmlinux(bz_image(gzip.compress(ELF), version=0x200))


IMAGE = b"MZ" + bytes(54) + b"ARM\x64" + bytes(range(256)) * 64


def zboot(payload: bytes) -> bytes:
    """Make an EFI program as kernels for arm64 are packed; the last four bytes are the size."""
    return b"MZ\0\0zimg" + struct.pack("<II", 64, len(payload) - 4) + bytes(48) + payload + b"tail"


IMAGES = {
    "bare": IMAGE,
    "gzip": gzip.compress(IMAGE),
    "zboot gzip": zboot(gzip.compress(IMAGE) + bytes(4)),
    "zboot xz": zboot(lzma.compress(IMAGE, lzma.FORMAT_XZ) + struct.pack("<I", len(IMAGE))),
}


@pytest.mark.parametrize("name", IMAGES)
def test_arms_image_is_unpacked(name: str) -> None:
    assert extract_image(IMAGES[name]) == IMAGE


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_no_image_of_arm_is_refused(name: str) -> None:
    for wrong in (IMAGES[name][: len(IMAGES[name]) // 2], bz_image(ELF + SIZE), b""):
        if name == "bare" and wrong.startswith(b"MZ"):
            continue  # nothing in it says how long it is
        with pytest.raises(CorruptError):
            extract_image(wrong)
