"""The archive is one that others read, and its script is one that busybox's shell takes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from arcboxd.assets import cpio
from arcboxd.assets.initramfs import (
    EarlyModules,
    build_initramfs,
    floor_initramfs,
    init_script,
)

MODULES = EarlyModules(
    "6.1.0-9", ("crc32c_intel",), ("jbd2", "ext4"), ("virtio",), ("virtio_net",), ("squashfs",)
)


def listing(archive: bytes, *options: str) -> list[str]:
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed")
    argv = ["cpio", "-t", "--quiet", *options]
    done = subprocess.run(argv, input=archive, capture_output=True, check=True)
    assert done.stderr == b""
    return done.stdout.decode().splitlines()


def test_cpio_reads_what_we_write(tmp_path: Path) -> None:
    archive = cpio.write_cpio(
        {
            "a/b/odd": cpio.file(b"12345", 0o640),
            "a/empty": cpio.file(b""),
            "link": cpio.symlink("a/b/odd"),
            "dev/console": cpio.character_device(5, 1),
        }
    )
    assert listing(archive) == ["a", "a/b", "a/b/odd", "a/empty", "dev", "dev/console", "link"]
    console = next(line for line in listing(archive, "-v") if "console" in line)
    assert console.startswith("crw-------")
    assert "5,   1" in console
    subprocess.run(
        ["cpio", "-id", "--quiet", "a/*", "link"], input=archive, cwd=tmp_path, check=True
    )
    assert (tmp_path / "link").read_bytes() == b"12345"
    assert (tmp_path / "a/b/odd").stat().st_mode & 0o777 == 0o640


def test_the_order_of_the_input_does_not_matter() -> None:
    nodes = {"b": cpio.file(b"b"), "a/c": cpio.file(b"c")}
    assert cpio.write_cpio(nodes) == cpio.write_cpio(dict(reversed(nodes.items())))


def test_the_initramfs_has_what_its_script_loads(tmp_path: Path) -> None:
    for name in MODULES.all:
        (tmp_path / f"{name}.ko").write_bytes(name.encode())
    archive = build_initramfs(
        b"busybox", MODULES, tmp_path, agent_fs="erofs", modules_fs="squashfs"
    )
    names = listing(archive)
    assert {f"lib/{name}.ko" for name in MODULES.all} <= {*names}
    assert {"init", "bin/busybox", "dev/console", "etc/boot.conf", "new", "proc"} <= {*names}
    assert b"KERNEL_VERSION='6.1.0-9'\n" in archive
    assert b"ROOT_MODULES='jbd2 ext4'\n" in archive
    assert b"AGENT_FS='erofs'\n" in archive


def test_the_floor_is_small() -> None:
    assert listing(floor_initramfs(b"busybox")) == [
        *("bin", "bin/busybox", "dev", "dev/console", "init")
    ]


def test_the_scripts_parse() -> None:
    if (busybox := shutil.which("busybox")) is None:
        pytest.skip("busybox is not installed")
    subprocess.run([busybox, "sh", "-n"], input=init_script(), check=True)
