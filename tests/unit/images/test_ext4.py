"""The reader of filesystems, on what mke2fs makes, whole and damaged."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from arcboxd.errors import ArcboxError
from arcboxd.images import rootfs
from arcboxd.images.ext4_read import Ext4

MIB = 1 << 20
LARGE = random.Random(1).randbytes(5 * MIB)  # noqa: S311
KINDS = {
    "ext2": ("-t", "ext2", "-b", "1024"),
    "ext3": ("-t", "ext3", "-b", "1024"),
    "ext4": ("-t", "ext4"),
    "old inodes": ("-t", "ext4", "-I", "128", "-O", "^64bit,^metadata_csum"),
    "64bit": ("-t", "ext4", "-O", "64bit", "-b", "1024"),
    "meta_bg": ("-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "1024"),
    "meta_bg 64bit": ("-t", "ext4", "-O", "64bit,meta_bg,^resize_inode", "-b", "1024", "-g", "512"),
}


@pytest.fixture(params=KINDS)
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "usr" / "bin").mkdir(parents=True)
    (tree / "bin").symlink_to("usr/bin")
    (tree / "usr" / "bin" / "sh").write_bytes(LARGE)
    (tree / "long").symlink_to("/" + "x/../" * 40 + "usr/./bin//sh")
    (tree / "loop").symlink_to("loop")
    (tree / "small").write_bytes(b"small")
    (tree / "many").mkdir()
    for n in range(600):
        (tree / "many" / f"a-file-with-quite-a-long-name-{n}").touch()
    with (tree / "holes").open("wb") as file:
        file.truncate(3 * MIB)
        file.seek(2 * MIB)
        file.write(b"here")
    (tree / "x").mkdir()
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(48 * MIB)
    env = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    argv = ["mke2fs", "-q", "-F", *KINDS[request.param], "-d", str(tree), str(path)]
    subprocess.run(argv, check=True, env=env)
    return path


def test_files_are_as_they_were_made(image: Path) -> None:
    with image.open("rb") as file:
        files = Ext4(file, 0, image.stat().st_size)
        for path in ("usr/bin/sh", "bin/sh", "long"):
            found = rootfs.find(files, path)
            assert found is not None
            assert found[1] == "usr/bin/sh"
            assert files.head(found[0], len(LARGE) + 1) == LARGE
            assert files.head(found[0], 20) == LARGE[:20]
        for path, content in (
            ("small", b"small"),
            ("holes", bytes(2 * MIB) + b"here" + bytes(MIB - 4)),
        ):
            found = rootfs.find(files, path)
            assert found is not None
            assert files.head(found[0], 4 * MIB) == content
        many = rootfs.find(files, "many")
        assert many is not None
        assert len(files.names(many[0])) == 602
        for path in ("nothing", "loop", "small/x", "many/nothing", "../../nothing"):
            assert rootfs.find(files, path) is None
        outside = rootfs.find(files, "../../usr/bin")
        assert outside is not None
        assert outside[1] == "usr/bin"


def test_damage_is_an_error_or_nothing(image: Path) -> None:
    """Whatever is changed, reading ends with an answer or with one of our errors."""
    sound = image.read_bytes()
    noise = random.Random(7)  # noqa: S311
    used = [at for at in range(0, len(sound), 512) if sound[at : at + 512].strip(b"\0")]
    for _ in range(20):
        damaged = bytearray(sound)
        for _ in range(400):
            damaged[noise.choice(used[:600]) + noise.randrange(512)] = noise.randrange(256)
        image.write_bytes(damaged)
        with image.open("rb") as file:
            try:
                files = Ext4(file, 0, len(damaged))
                rootfs.examine(files, "x86_64")
                for path in ("usr/bin/sh", "long", "many/x", "holes"):
                    if found := rootfs.find(files, path):
                        files.head(found[0], MIB)
            except ArcboxError:
                continue
