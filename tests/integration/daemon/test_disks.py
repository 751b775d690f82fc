"""Root disks: qemu-img makes the first of its kind, and the next are what it made."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from arcboxd.domain.image import BaseImage
from arcboxd.machines import disks
from arcboxd.paths import MachinePaths, Paths

GIB = 1 << 30


@pytest.fixture
def image(tmp_path: Path) -> BaseImage:
    path = tmp_path / "root.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1G"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", path], check=True)
    return BaseImage("k", path, "qcow2", GIB, distro="d", version="1", arch="x86_64")


def machine(tmp_path: Path, name: str) -> MachinePaths:
    paths = Paths.of(tmp_path / "home").machine(name)
    paths.directory.mkdir(parents=True)
    return paths


async def test_disks_of_one_kind_are_alike_and_others_are_not(
    tmp_path: Path, image: BaseImage
) -> None:
    disks._empty_disks.clear()
    one, two, larger = (machine(tmp_path, name) for name in ("one", "two", "larger"))
    for paths, size in ((one, 2 * GIB), (two, 2 * GIB), (larger, 3 * GIB + 1)):
        await disks.on_image(paths, image, size)
    assert one.disk.read_bytes() == two.disk.read_bytes() != larger.disk.read_bytes()
    assert two.disk.stat().st_blocks * 512 <= 64 * 1024
    argv = ["qemu-io", "-f", "qcow2", "-c", "read -P 7 0 64k", "-c", "write -P 8 1G 4k"]
    for paths, size in ((two, 2 * GIB), (larger, 3 * GIB + 512)):
        done = subprocess.run([*argv, paths.disk], capture_output=True, check=True)
        assert b"verification failed" not in done.stdout
        subprocess.run(["qemu-img", "check", "-q", paths.disk], check=True)
        info = subprocess.run(
            ["qemu-img", "info", "--output=json", paths.disk], capture_output=True, check=True
        )
        assert json.loads(info.stdout)["virtual-size"] == size
