"""Images are the same bytes for the same files, and hold what they were given."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from arcboxd.assets.disk_image import make_erofs, make_squashfs
from arcboxd.errors import AssetBuildError, MissingToolError
from arcboxd.process import tool


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    try:
        tool("mkfs.erofs")
        tool("mksquashfs")
    except MissingToolError as error:
        pytest.skip(str(error))
    root = tmp_path / "tree"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "program").write_bytes(b"#!/bin/sh\n" * 1000)
    (root / "bin" / "program").chmod(0o755)
    (root / "link").symlink_to("bin/program")
    return root


async def test_images_do_not_depend_on_when_they_are_made(tree: Path, tmp_path: Path) -> None:
    for make, name in ((make_erofs, "erofs"), (make_squashfs, "squashfs")):
        images = [tmp_path / f"{name}{n}" for n in range(2)]
        for n, image in enumerate(images):
            os.utime(tree / "bin" / "program", (n, n))
            await make(tree, image)
        assert images[0].read_bytes() == images[1].read_bytes()


async def test_an_image_holds_the_tree(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    await make_squashfs(tree, image)
    out = subprocess.run(
        [tool("unsquashfs"), "-cat", str(image), "bin/program"], capture_output=True, check=True
    )
    assert out.stdout == (tree / "bin" / "program").read_bytes()


async def test_a_failure_names_the_tree(tmp_path: Path) -> None:
    with pytest.raises(AssetBuildError, match="nowhere"):
        await make_erofs(tmp_path / "nowhere", tmp_path / "image")
