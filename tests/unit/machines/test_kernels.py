"""Reading the release out of kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcboxd.machines.kernels import release


def _bz_image(version: bytes) -> bytes:
    data = bytearray(0x400)
    data[0x202:0x206] = b"HdrS"
    data[0x20E:0x210] = (0x100).to_bytes(2, "little")
    data[0x300 : 0x300 + len(version)] = version
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (_bz_image(b"6.1.0-9-amd64 (someone@there) #1 SMP\0"), "6.1.0-9-amd64"),
        (_bz_image(b""), ""),
        (_bz_image(b"\x07\xff bell")[:0x302], ""),
        (b"\x7fELF" + bytes(5000) + b"Linux version 6.12.3 (me@here) gcc\n\0", "6.12.3"),
        (b"\x7fELF Linux version %s (%s)", ""),
        (b"HdrS", ""),
        (b"", ""),
    ],
)
def test_release(data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(data)
    assert release(tmp_path / "kernel") == told


def test_a_kernel_that_is_gone_has_none(tmp_path: Path) -> None:
    assert not release(tmp_path / "kernel")
