"""What all builders of parts need: packages, the cache, and somebody to tell of each step."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from arcboxd.assets.apt import Apt, Package
from arcboxd.assets.cache import BuildFn, Cache, Entry, Inputs
from arcboxd.domain.image import ProgressFn


class Workshop:
    """One call's access to the cache and to packages."""

    def __init__(self, cache: Cache, progress: ProgressFn) -> None:
        """Build into ``cache``, and tell ``progress`` of it."""
        self._cache = cache
        self._progress = progress

    def begin(self, phrase: str) -> None:
        """Tell of a step whose length is not known."""
        self._progress(phrase, 0, 0)

    async def resolve(
        self, apt: Apt, names: Iterable[str], *, refresh: bool = False
    ) -> dict[str, Package]:
        """Give the packages of these names and all that they depend on, as `Apt.resolve`."""
        return await apt.resolve(
            tuple(names),
            refresh=refresh,
            on_update=lambda: self.begin("reading the Debian mirror's package lists"),
        )

    async def fetch(self, apt: Apt, packages: Iterable[Package], what: str) -> dict[str, Path]:
        """Give the packages' files by package name, as `Apt.fetch`; ``what`` is for the user."""
        return await apt.fetch(packages, lambda d, t: self._progress(f"downloading {what}", d, t))

    async def ensure(self, kind: str, inputs: Inputs, build: BuildFn) -> Entry:
        """Give an entry of the cache, built if it is missing, as `Cache.ensure`."""

        def waiting() -> None:
            self.begin(f"waiting for another process that makes the {kind}")

        return await self._cache.ensure(kind, inputs, build, on_wait=waiting)
