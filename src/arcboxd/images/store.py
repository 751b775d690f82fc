"""Base images: which there are, and how one is found or built."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from arcboxd.assets.cache import Cache, Entry, Inputs, key_of
from arcboxd.assets.mirror import SUITES, Mirror, host_mirror
from arcboxd.domain.image import ARCH_ALIASES, BaseImage, ProgressFn
from arcboxd.errors import InvalidArgumentError, UnsupportedError
from arcboxd.images import debian
from arcboxd.paths import Paths

BUILDABLE = ("x86_64",)

_KIND = "image"


@dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution that we can build images of."""

    name: str
    default: str
    versions: dict[str, str]
    """Canonical versions by all the names that are understood."""


DISTRIBUTIONS = {
    "debian": Distribution(
        "debian",
        default="bookworm",
        versions={name: suite for suite, number in SUITES.items() for name in (suite, number)},
    )
}


def canonical_arch(arch: str) -> str:
    """Give the kernel's name of an architecture.

    Raises:
        InvalidArgumentError: Nobody knows it.
    """
    if (found := ARCH_ALIASES.get(arch.lower())) is None:
        known = ", ".join(sorted(set(ARCH_ALIASES.values())))
        raise InvalidArgumentError(f"unknown architecture {arch!r}", hint=f"known: {known}")
    return found


class ImageStore:
    """Base images in the cache; implements `machines.Images`."""

    def __init__(self, paths: Paths, *, mirror: Mirror | None = None) -> None:
        """Use the cache of ``paths``.

        Args:
            paths: Names the cache.
            mirror: Where Debian's packages come from; None for the host's own mirror.
        """
        self._root = paths.images
        self._mirror = mirror
        self._cache = Cache(paths.images)

    def resolve(self, distro: str, version: str, arch: str) -> tuple[str, str]:
        """Give the canonical distribution and version, without any I/O.

        Args:
            distro: A distribution's name; empty for Debian.
            version: A version, its number or its name; empty for the distribution's default.
            arch: An architecture, by the kernel's or Debian's name.

        Raises:
            InvalidArgumentError: No source has such an image; the hint names what there is.
            UnsupportedError: There are such images, but not for that architecture.
        """
        known = DISTRIBUTIONS.get((distro or "debian").lower())
        if known is None:
            raise InvalidArgumentError(
                f"unknown distribution {distro!r}", hint=f"known: {', '.join(DISTRIBUTIONS)}"
            )
        found = known.versions.get((version or known.default).lower())
        if found is None:
            names = ", ".join(known.versions)
            raise InvalidArgumentError(
                f"unknown version {version!r} of {known.name}", hint=f"known: {names}"
            )
        if canonical_arch(arch) not in BUILDABLE:
            raise UnsupportedError(
                f"no {known.name} image for {arch}", hint=f"known: {', '.join(BUILDABLE)}"
            )
        return known.name, found

    async def ensure(self, distro: str, version: str, arch: str, progress: ProgressFn) -> BaseImage:
        """Give the base image, building it when it is missing.

        An image that is there is used as it is, however old: its machines' own apt brings updates.
        Cancelled, it leaves nothing half made.

        Raises:
            AssetBuildError: A step failed; nothing half-made is left.
            InvalidArgumentError: No source has such an image.
            MissingToolError: A program is missing on the host.
            PreconditionError: The user may not make user namespaces.
            UnsupportedError: Not for that architecture.
        """
        name, suite = self.resolve(distro, version, arch)
        machine = canonical_arch(arch)

        async def build(target: Path) -> None:
            mirror = self._mirror or await host_mirror(suite)
            debs = self._root / "debs" / f"{suite}-{machine}"
            await debian.build_debian(
                suite, machine, mirror=mirror, debs=debs, target=target, progress=progress
            )

        def waiting() -> None:
            progress("waiting for another process that builds the image", 0, 0)

        inputs = _inputs(name, suite, machine)
        return _image(await self._cache.ensure(_KIND, inputs, build, on_wait=waiting))

    async def find(self, distro: str, version: str, arch: str) -> BaseImage | None:
        """Give the image that `ensure` would give, if it is there already.

        Raises:
            InvalidArgumentError: No source has such an image.
            UnsupportedError: Not for that architecture.
        """
        name, suite = self.resolve(distro, version, arch)
        return await self.get(key_of(_inputs(name, suite, canonical_arch(arch))))

    async def get(self, key: str) -> BaseImage | None:
        """Give an image that is there already."""
        if not key.isalnum():
            return None
        entry = await asyncio.to_thread(self._cache.find, _KIND, key)
        return None if entry is None else _image(entry)

    async def list(self) -> tuple[BaseImage, ...]:
        """List the images that are there."""
        entries = await asyncio.to_thread(lambda: [*self._cache.entries(_KIND)])
        return tuple(_image(entry) for entry in entries)


def _inputs(name: str, suite: str, arch: str) -> Inputs:
    # The mirror is not part of the key: all mirrors have the same packages, signed by Debian.
    return {
        "distro": name,
        "version": suite,
        "arch": arch,
        "packages": list(debian.PACKAGES),
        "bytes": debian.VIRTUAL_BYTES,
        "script": debian.script().decode(),
        "recipe": debian.RECIPE,
    }


def _image(entry: Entry) -> BaseImage:
    facts = entry.inputs
    return BaseImage(
        key=entry.key,
        path=entry.file("root.img"),
        format="raw",
        virtual_bytes=int(str(facts["bytes"])),
        distro=str(facts["distro"]),
        version=str(facts["version"]),
        arch=str(facts["arch"]),
    )
