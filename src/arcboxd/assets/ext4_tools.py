"""Programs for images that the host's release is too old for, from a newer Debian.

mke2fs makes a filesystem of a tar archive since e2fsprogs 1.47.1, through libarchive; bookworm has
1.47.0. sqfs2tar reads a squashfs without unpacking it. Both run with their own loader and
libraries, so that the host needs none of them.
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path

from arcboxd.assets.apt import Apt, unpack
from arcboxd.assets.cache import Cache, Inputs
from arcboxd.assets.mirror import Mirror
from arcboxd.assets.workshop import Workshop
from arcboxd.domain.image import ProgressFn
from arcboxd.errors import AssetBuildError
from arcboxd.paths import Paths

SUITE = "trixie"
PACKAGES = ("e2fsprogs", "libarchive13t64", "squashfs-tools-ng")
PROGRAMS = ("mke2fs", "sqfs2tar")
RECIPE = "1"
"""Raised when something else is made of the same packages."""


@dataclass(frozen=True, slots=True)
class ImageTools:
    """The programs, in a directory of the cache."""

    directory: Path

    @property
    def mke2fs_config(self) -> Path:
        """Name mke2fs's settings; the host's may be of another version."""
        return self.directory / "mke2fs.conf"

    def command(self, program: str) -> list[str]:
        """Give the words that run a program."""
        libraries = self.directory / "lib"
        loader = next(libraries.glob("ld-linux*.so*"))
        return [
            *(str(loader), "--library-path", str(libraries), "--argv0", program),
            str(self.directory / "bin" / program),
        ]


class ImageToolStore:
    """The programs in the cache, fetched when they are first needed."""

    def __init__(self, paths: Paths, arch: str, mirror: Mirror | None = None) -> None:
        """Use the cache of ``paths``, for a host of ``arch``."""
        self._apt = Apt(paths.assets / "apt", SUITE, arch, mirror)
        self._cache = Cache(paths.assets)

    async def ensure(self, progress: ProgressFn) -> ImageTools:
        """Give the programs.

        Raises:
            AssetBuildError: Debian's mirror cannot be reached, or lacks them.
            MissingToolError: The host has no apt, or not Debian's keys.
        """
        workshop = Workshop(self._cache, progress)
        found = await workshop.resolve(self._apt, PACKAGES)

        async def build(target: Path) -> None:
            files = await workshop.fetch(self._apt, found.values(), "mke2fs and sqfs2tar")
            await unpack(files.values(), target / "scratch")
            await asyncio.to_thread(_collect, target / "scratch", target)
            await asyncio.to_thread(shutil.rmtree, target / "scratch")

        inputs: Inputs = {
            "packages": [package.identity for package in found.values()],
            "recipe": RECIPE,
        }
        return ImageTools((await workshop.ensure("imagetools", inputs, build)).path)


def _collect(scratch: Path, target: Path) -> None:
    libraries, programs = target / "lib", target / "bin"
    for folder in (libraries, programs):
        folder.mkdir()
    for path in scratch.glob("**/*.so.*"):
        # Links too: each name that a program asks for becomes a file.
        if path.is_file() and not (libraries / path.name).exists():
            shutil.copyfile(path, libraries / path.name)
    for loader in scratch.glob("**/ld-linux*.so*"):
        shutil.copyfile(loader, libraries / loader.name)
        (libraries / loader.name).chmod(0o755)
    for name in PROGRAMS:
        found = next(iter(scratch.glob(f"**/*bin/{name}")), None)
        if found is None:
            raise AssetBuildError(f"Debian's packages have no {name} where it is expected")
        shutil.copyfile(found, programs / name)
        (programs / name).chmod(0o755)
    shutil.copyfile(scratch / "etc" / "mke2fs.conf", target / "mke2fs.conf")
