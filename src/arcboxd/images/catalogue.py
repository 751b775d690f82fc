"""The images that are in the cache, and what each says of itself."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from arcboxd import durable
from arcboxd.assets.cache import MANIFEST, Cache, Entry
from arcboxd.domain.image import BaseImage
from arcboxd.errors import CorruptError
from arcboxd.images.build import ROOT, Built

KIND = "image"
FACTS = "image.json"
"""Beside an image that was not built by us: what was found in it."""


class Catalogue:
    """Images by key and by name."""

    def __init__(self, root: Path, cache: Cache) -> None:
        """Look into ``cache``, which is at ``root``."""
        self._root = root
        self._cache = cache

    def get(self, key: str) -> BaseImage | None:
        """Give an image by its key."""
        entry = self._cache.find(KIND, key) if key.isalnum() else None
        return None if entry is None else image_of(entry)

    def all(self) -> tuple[BaseImage, ...]:
        """Give all, oldest first."""
        found = [image for e in self._cache.entries(KIND) if (image := image_of(e)) is not None]
        return tuple(sorted(found, key=lambda image: (image.created_unix_ns, image.key)))

    def named(self, distro: str, version: str, arch: str) -> BaseImage | None:
        """Give the newest of a name that was not built by us; any version for an empty one."""
        pinned = self.get(self._pin(distro, version, arch))
        found = [
            image
            for image in self.all()
            if (image.distro, image.arch) == (distro, arch) and version in {"", image.version}
        ]
        return found[-1] if found else pinned

    def pin(self, distro: str, version: str, arch: str, key: str) -> None:
        """Note that this is what was asked for, by whatever name of the version."""
        path = self._pin_file(distro, version, arch)
        with durable.storing(f"make {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            durable.write(path, key.encode())

    def remove(self, image: BaseImage) -> int:
        """Remove an image, and give the bytes that this frees; machines elsewhere keep theirs.

        Raises:
            StoreError: It cannot be removed.
        """
        return self._cache.remove(image.path.parent)

    def damaged(self, image: BaseImage) -> list[str]:
        """Name the files of an image that are not what was built; reads all of it.

        Raises:
            CorruptError: It is no image any more.
        """
        entry = self._cache.find(KIND, image.key)
        if entry is None:
            raise CorruptError(f"the image {image.key[:12]} is not whole any more")
        return self._cache.verify(entry)

    def _pin(self, distro: str, version: str, arch: str) -> str:
        try:
            return self._pin_file(distro, version, arch).read_text()
        except (OSError, UnicodeDecodeError):
            return ""

    def _pin_file(self, distro: str, version: str, arch: str) -> Path:
        name = "_".join(part.replace("/", "%") for part in (distro, version, arch))
        return self._root / "names" / name[-200:]


def image_of(entry: Entry) -> BaseImage | None:
    """Read what an entry of the cache is; None if it cannot be read."""
    try:
        facts = dict(entry.inputs)
        if (told := entry.file(FACTS)).exists():
            facts |= json.loads(told.read_bytes())
        return BaseImage(
            key=entry.key,
            path=entry.file(ROOT),
            format="raw",
            virtual_bytes=int(str(facts["bytes"])),
            distro=str(facts["distro"]),
            version=str(facts["version"]),
            arch=str(facts["arch"]),
            source=str(facts.get("source", facts["distro"])),
            init=str(facts.get("init", "systemd")),
            created_unix_ns=entry.file(MANIFEST).stat().st_mtime_ns,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


async def write_facts(target: Path, built: Built, version: str) -> None:
    """Write beside a new image what was found in it."""
    facts = {
        "bytes": built.virtual_bytes,
        "version": version or built.system.version,
        "init": built.system.init,
    }
    await asyncio.to_thread((target / FACTS).write_text, json.dumps(facts, indent=1))
