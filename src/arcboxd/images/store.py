"""Base images: which there are, and how one is found, built, fetched or imported."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from arcboxd.assets.cache import BuildFn, Cache, Inputs, key_of
from arcboxd.assets.ext4_tools import ImageToolStore
from arcboxd.assets.mirror import DEBIAN_ARCHES, Mirror, host_arch, host_mirror, require_keyring
from arcboxd.assets.store import AssetStore
from arcboxd.domain.image import BaseImage, NewImage, ProgressFn
from arcboxd.errors import (
    ArcboxError,
    ErrorKind,
    ImageNotFoundError,
    InvalidArgumentError,
    StoreError,
)
from arcboxd.images import debian, importer, names, ubuntu
from arcboxd.images.catalogue import KIND, Catalogue, image_of, write_facts
from arcboxd.images.importer import Source
from arcboxd.images.names import OCI, Wanted, wanted
from arcboxd.images.second_stage import RunGuest, SecondStage
from arcboxd.paths import Paths

_REFUSALS = {ErrorKind.INVALID, ErrorKind.CORRUPT, ErrorKind.UNSUPPORTED, ErrorKind.NOT_FOUND}


@dataclass(frozen=True, slots=True)
class Origins:
    """Where images come from, as the user has set it."""

    mirror: Mirror | None = None
    """Of Debian's packages; None for the host's own."""
    ubuntu_mirror: str = ""
    servers: Sequence[str] = ()
    """Of simplestreams, asked in this order."""
    keyring: Path | None = None
    """With one, the servers' lists must be signed."""


class ImageStore:
    """Base images in the cache; implements `machines.Images`."""

    def __init__(
        self,
        paths: Paths,
        origins: Origins | None = None,
        *,
        run_guest: RunGuest | None = None,
    ) -> None:
        """Use the cache of ``paths``.

        Args:
            paths: Names the cache.
            origins: Where images come from; None for what the host has.
            run_guest: Needed to build distributions for another architecture than the host's.
        """
        self._root = paths.images
        self._origins = origins or Origins()
        self._cache = Cache(paths.images)
        self._catalogue = Catalogue(paths.images, self._cache)
        self._host_arch = host_arch()
        self._tools = ImageToolStore(paths, self._host_arch, self._origins.mirror)
        self._second_stage: SecondStage | None = None
        if run_guest is not None:
            assets = AssetStore(paths, mirror=self._origins.mirror)
            self._second_stage = SecondStage(assets, run_guest)
        self._fetching: dict[Wanted, asyncio.Lock] = {}

    def resolve(self, distro: str, version: str, arch: str) -> tuple[str, str]:
        """Give the canonical distribution and version, without any I/O.

        Args:
            distro: A distribution's name, an imported image's, or ``oci:`` and a reference; empty
                for Debian.
            version: A version, its number or its name; empty for the default or the newest.
            arch: An architecture, by the kernel's or Debian's name.

        Raises:
            InvalidArgumentError: There can be no such image; the hint names what there is.
        """
        found = wanted(distro, version, arch)
        return found.distro, found.version

    async def ensure(self, distro: str, version: str, arch: str, progress: ProgressFn) -> BaseImage:
        """Give the base image, building or fetching it when it is missing.

        An image that is there is used as it is, however old: its machines' own package manager
        brings updates. Cancelled, it leaves nothing half made but downloads, which go on the next
        time.

        Raises:
            AssetBuildError: A step failed; nothing half-made is left.
            CorruptError: What came is not what was promised.
            ImageNotFoundError: No source has such an image.
            ImageServerError: A server does not answer.
            InvalidArgumentError: There can be no such image.
            MissingToolError: A program is missing on the host.
            PreconditionError: The user may not make user namespaces, or a mirror is not known.
            UnsafeImageError: It has what could harm the host.
            UnsupportedError: It cannot be built on this host.
        """
        return await self._ensure(wanted(distro, version, arch), progress, refresh=False)

    async def pull(self, distro: str, version: str, arch: str, progress: ProgressFn) -> BaseImage:
        """Do the same, but ask registries and image servers for what is newest.

        Raises:
            ArcboxError: As `ensure`.
        """
        found = wanted(distro, version, arch or self._host_arch)
        return await self._ensure(found, progress, refresh=True)

    async def find(self, distro: str, version: str, arch: str) -> BaseImage | None:
        """Give the image that `ensure` would give, if it is there already.

        Raises:
            InvalidArgumentError: There can be no such image.
        """
        return await self._find(wanted(distro, version, arch))

    async def get(self, key: str) -> BaseImage | None:
        """Give an image that is there already."""
        return await asyncio.to_thread(self._catalogue.get, key)

    async def list(self) -> tuple[BaseImage, ...]:
        """List the images that are there, oldest first."""
        return await asyncio.to_thread(self._catalogue.all)

    async def import_file(self, new: NewImage, progress: ProgressFn) -> BaseImage:
        """Make an image of a file, by whose name machines then find it.

        A second import of the same file gives the image that is there. Cancelled or refused, it
        leaves nothing.

        Raises:
            CorruptError: The file is damaged, or has another digest.
            InvalidArgumentError: There is no such file, or the name cannot be.
            AssetBuildError: A step failed.
            UnsafeImageError: It has what could harm the host.
            UnsupportedError: It is of a kind, or for an architecture, that is not known.
        """
        if new.name in names.DISTRIBUTIONS:
            raise InvalidArgumentError(
                f"{new.name!r} is a distribution that we build ourselves",
                hint=f"give it another name, such as my-{new.name}",
            )
        names.check_name(new.name)
        version = names.check_version(new.version) if new.version else ""
        arch = names.canonical_arch(new.arch or self._host_arch)
        path = Path(new.path)
        if not path.is_absolute():
            raise InvalidArgumentError(f"{new.path[:200]!r} is no absolute path")
        source = await importer.checked(path, new.sha256, progress)
        asked = Wanted("named", new.name, version, arch)
        return await self._make(asked, "file", source, progress)

    async def remove(self, image: BaseImage) -> int:
        """Remove an image that nothing rests on, and give the bytes that this frees.

        Raises:
            StoreError: It cannot be removed.
        """
        return await asyncio.to_thread(self._catalogue.remove, image)

    async def verify(self, image: BaseImage) -> Sequence[str]:
        """Name the files of an image that are not what was built; reads all of it.

        Raises:
            CorruptError: It is no image any more.
        """
        return await asyncio.to_thread(self._catalogue.damaged, image)

    async def _ensure(self, asked: Wanted, progress: ProgressFn, *, refresh: bool) -> BaseImage:
        if asked.kind == "built":
            return await self._build(asked, progress)
        async with self._fetching.setdefault(asked, asyncio.Lock()):
            found = await self._find(asked)
            # What came from a file has no newer version that could be asked for.
            if found is not None and (not refresh or found.source == "file"):
                return found
            fetch = self._fetch_oci if asked.kind == "oci" else self._fetch_named
            async with self._downloads(asked) as target:
                return await fetch(asked, target, progress)

    async def _find(self, asked: Wanted) -> BaseImage | None:
        if asked.kind == "built":
            return await self.get(key_of(_inputs(asked)))
        return await asyncio.to_thread(
            self._catalogue.named, asked.distro, asked.version, asked.arch
        )

    async def _build(self, asked: Wanted, progress: ProgressFn) -> BaseImage:
        async def build(target: Path) -> None:
            debs = self._root / "debs" / f"{asked.version}-{asked.arch}"
            await debian.build_debian(
                asked.version,
                asked.arch,
                sources=await self._sources(asked),
                debs=debs,
                target=target,
                progress=progress,
                second_stage=self._second_stage,
            )

        return await self._cached(_inputs(asked), build, progress)

    async def _sources(self, asked: Wanted) -> str:
        arch = DEBIAN_ARCHES[asked.arch]
        if asked.distro == "ubuntu":
            return ubuntu.sources(self._origins.ubuntu_mirror, asked.version, arch)
        require_keyring()
        mirror = self._origins.mirror or await host_mirror(asked.version)
        return mirror.sources(asked.version, arch)

    async def _fetch_oci(self, asked: Wanted, target: Path, progress: ProgressFn) -> BaseImage:
        from arcboxd.images import registry  # noqa: PLC0415 - its HTTP client takes long to import

        reference = asked.distro.removeprefix(OCI)
        layout = await registry.pull(reference, asked.arch, target, progress)
        # It names the manifest by its digest, and that names everything else.
        index = await asyncio.to_thread((layout / "index.json").read_bytes)
        source = Source(layout, hashlib.sha256(index).hexdigest())
        return await self._make(asked, "oci", source, progress)

    async def _fetch_named(self, asked: Wanted, target: Path, progress: ProgressFn) -> BaseImage:
        from arcboxd.images import simplestreams  # noqa: PLC0415 - as above

        if not self._origins.servers:
            raise ImageNotFoundError(
                f"there is no image {asked.title!r}",
                hint="see those there are with: arcbox image ls; import one with: arcbox image"
                " import FILE --name NAME",
            )
        fetched = await simplestreams.fetch(
            self._origins.servers,
            asked.distro,
            asked.version,
            asked.arch,
            target,
            progress,
            keyring=self._origins.keyring,
        )
        exact = Wanted("named", asked.distro, fetched.version, asked.arch)
        # Once more, from the disk: what is opened is what was checked.
        source = await importer.checked(fetched.path, fetched.sha256, progress)
        image = await self._make(exact, "simplestreams", source, progress)
        await asyncio.to_thread(
            self._catalogue.pin, asked.distro, asked.version, asked.arch, image.key
        )
        return image

    async def _make(
        self, asked: Wanted, kind: str, source: Source, progress: ProgressFn
    ) -> BaseImage:
        """Make the image of a file or layout that is here."""
        tools = await self._tools.ensure(progress)

        async def build(target: Path) -> None:
            built = await importer.make(source, asked.arch, target, tools, progress)
            await write_facts(target, built, asked.version)

        inputs: Inputs = {
            "source": kind,
            "distro": asked.distro,
            "version": asked.version,
            "arch": asked.arch,
            "sha256": source.sha256,
            "recipe": importer.RECIPE,
        }
        return await self._cached(inputs, build, progress)

    async def _cached(self, inputs: Inputs, build: BuildFn, progress: ProgressFn) -> BaseImage:
        def waiting() -> None:
            progress("waiting for another process that makes the image", 0, 0)

        image = image_of(await self._cache.ensure(KIND, inputs, build, on_wait=waiting))
        if image is None:
            raise StoreError("the image that was just made cannot be read")
        return image

    @contextlib.asynccontextmanager
    async def _downloads(self, asked: Wanted) -> AsyncIterator[Path]:
        """Give a directory for what is fetched.

        It stays if that breaks off, to go on from, but not if what came is refused.
        """
        name = key_of({"distro": asked.distro, "version": asked.version, "arch": asked.arch})
        target = self._root / "downloads" / name
        try:
            yield target
        except ArcboxError as error:
            if error.kind in _REFUSALS:
                await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)
            raise
        await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)


def _inputs(asked: Wanted) -> Inputs:
    # The mirror is not part of the key: all mirrors have the same packages, signed by Debian.
    return {
        "distro": asked.distro,
        "version": asked.version,
        "arch": asked.arch,
        "packages": list(debian.PACKAGES),
        "bytes": debian.VIRTUAL_BYTES,
        "script": debian.scripts(asked.arch),
        "recipe": debian.RECIPE,
    }
