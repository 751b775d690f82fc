"""Debian packages without root: resolved, fetched and verified by apt, in a directory of our own.

apt checks the archive's signatures with Debian's keys and nothing else: the host's other sources
and keys are not used. What was resolved once is written down (a pin) and used until someone asks
for a refresh, so that a warm start needs neither the network nor apt.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote

from arcboxd.assets.mirror import DEBIAN_ARCHES, Mirror, host_mirror, require_keyring
from arcboxd.errors import AssetBuildError, CorruptError
from arcboxd.process import CommandError, run, tool

LISTS_FRESH_S = 24 * 3600.0
"""How long the archive's package lists are used before they are fetched again."""
_LISTS_NEW_S = 60.0
"""The same where what is newest is asked for, which may be for many packages one after another."""

_UPDATE_TIMEOUT_S = 600.0
_FETCH_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class Package:
    """One version of a binary package."""

    name: str
    version: str
    file: str
    bytes: int
    sha256: str

    @property
    def identity(self) -> str:
        """Name its content in a cache key."""
        return f"{self.name}={self.version}:{self.sha256}"


class Apt:
    """apt for one release and architecture."""

    def __init__(self, root: Path, suite: str, arch: str, mirror: Mirror | None = None) -> None:
        """Keep everything below ``root``; ``mirror`` overrides the host's."""
        self.suite = suite
        self.arch = arch
        self._debian_arch = DEBIAN_ARCHES[arch]
        self._root = root / f"{suite}-{self._debian_arch}"
        self._mirror = mirror

    def pinned(self, names: Sequence[str]) -> dict[str, Package] | None:
        """Give what these names were resolved to, by package name; None when they never were."""
        try:
            rows = json.loads(self.pin(names).read_bytes())
            return {row["name"]: Package(**row) for row in rows}
        except (OSError, ValueError, TypeError, KeyError):
            return None

    async def resolve(
        self,
        names: Sequence[str],
        *,
        refresh: bool = False,
        on_update: Callable[[], None] = lambda: None,
    ) -> dict[str, Package]:
        """Give the newest packages of these names and all that they depend on, by name.

        Args:
            names: Package names.
            refresh: Forget the pin, and ask the archive what is newest.
            on_update: Called once if the archive's package lists are fetched.

        Raises:
            AssetBuildError: The archive cannot be reached, or has no such package.
            MissingToolError: The host has no apt, or not Debian's keys.
        """
        if not refresh and (found := self.pinned(names)) is not None:
            return found
        async with self._locked():
            if not refresh and (found := self.pinned(names)) is not None:
                return found
            await self._update(on_update, force=refresh)
            # Against an empty dpkg database, so that the answer does not depend on the host.
            out = await self._apt("install", "--print-uris", "-qq", *names, timeout_s=120)
            packages = parse_uris(out.decode())
            text = json.dumps([asdict(package) for package in packages], indent=1)
            await asyncio.to_thread(_replace, self.pin(names), text)
            return {package.name: package for package in packages}

    async def fetch(
        self,
        packages: Iterable[Package],
        on_bytes: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> dict[str, Path]:
        """Give the packages' files, by package name, downloading those that are missing.

        Args:
            packages: As `resolve` gave them.
            on_bytes: Called with how many bytes are there, and how many there will be.

        Raises:
            AssetBuildError: The archive cannot be reached, or no longer has that version.
            CorruptError: What came is not what the signed lists promise.
        """
        wanted = list(packages)
        total = sum(package.bytes for package in wanted)
        async with self._locked():
            missing = [p for p in wanted if not await asyncio.to_thread(self._has, p)]
            done = total - sum(p.bytes for p in missing)
            # A few calls, not one, so that there is progress to show.
            for batch in _batches(missing):
                on_bytes(done, total)
                await self._update(lambda: None)
                await self._download(batch)
                done += sum(p.bytes for p in batch)
        on_bytes(total, total)
        return {package.name: self._file(package) for package in wanted}

    async def _download(self, batch: Sequence[Package]) -> None:
        # apt-get download checks each file against the signed lists.
        names = [f"{p.name}={p.version}" for p in batch]
        await self._apt("download", "-qq", *names, timeout_s=_FETCH_TIMEOUT_S)
        for package in batch:
            if not await asyncio.to_thread(self._has, package):
                self._file(package).unlink(missing_ok=True)
                raise CorruptError(f"the package {package.file} is not what its digest says")

    def _has(self, package: Package) -> bool:
        try:
            with self._file(package).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256
        except FileNotFoundError:
            return False

    def _file(self, package: Package) -> Path:
        return self._root / "archives" / package.file

    def pin(self, names: Sequence[str]) -> Path:
        """Name the file that says what these names were resolved to, if they ever were."""
        tag = hashlib.sha256(" ".join(sorted(names)).encode()).hexdigest()[:16]
        return self._root / "pins" / f"{tag}.json"

    async def _update(self, on_update: Callable[[], None], *, force: bool = False) -> None:
        stamp = self._root / "updated"
        source = self._root / "sources.list"
        with contextlib.suppress(OSError):
            fresh_s = _LISTS_NEW_S if force else LISTS_FRESH_S
            if 0 <= time.time() - stamp.stat().st_mtime < fresh_s:
                return
        on_update()
        require_keyring()
        mirror = self._mirror or await host_mirror(self.suite)
        for folder in ("lists/partial", "cache/archives/partial", "archives", "pins"):
            (self._root / folder).mkdir(parents=True, exist_ok=True)
        source.write_text(mirror.sources(self.suite, self._debian_arch))
        (self._root / "status").write_text("")
        try:
            await self._apt("update", "-qq", "--error-on=any", timeout_s=_UPDATE_TIMEOUT_S)
        except AssetBuildError:
            # Old lists serve as well as fresh ones; without any there is nothing to go on with.
            if force or not stamp.exists():
                raise
            return
        stamp.touch()

    async def _apt(self, *words: str, timeout_s: float) -> bytes:
        settings = {
            "Dir::State": self._root,
            "Dir::State::lists": self._root / "lists",
            "Dir::State::status": self._root / "status",
            "Dir::Cache": self._root / "cache",
            "Dir::Etc::sourcelist": self._root / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Architecture": self._debian_arch,
            "APT::Architectures": self._debian_arch,
            "APT::Install-Recommends": "false",
            # Else apt, as root, drops to a user that cannot write here, and warns of it.
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::ForceHash": "SHA256",
            "Acquire::Retries": "3",
        }
        options = [word for k, v in settings.items() for word in ("-o", f"{k}={v}")]
        argv = [tool("apt-get", package="apt"), *options, *words]
        env = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        try:
            out = await run(argv, timeout_s=timeout_s, env=env, cwd=self._root / "archives")
        except CommandError as error:
            raise AssetBuildError(
                f"apt-get {words[0]} failed for {self.suite} ({self._debian_arch}): {error}",
                hint="check that the host reaches its Debian mirror; if a version is gone from it,"
                " ask for newer ones: arcbox image update",
            ) from error
        return out.stdout

    @contextlib.asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        """Keep other processes away from here; apt's own locks fail instead of waiting."""
        self._root.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.1)  # flock has no event, and a blocked thread no cancel
            yield
        finally:
            os.close(fd)


@contextlib.contextmanager
def put_back(pins: Iterable[Path]) -> Iterator[None]:
    """Put pins back as they were if what is made with newer ones fails, or is cancelled."""
    before = {pin: pin.read_text() if pin.exists() else None for pin in pins}
    try:
        yield
    except BaseException:
        for pin, text in before.items():
            if text is None:
                pin.unlink(missing_ok=True)
            else:
                _replace(pin, text)
        raise


def prune_archives(root: Path) -> int:
    """Remove the downloaded packages that no pin names; give the bytes that this freed.

    Args:
        root: As of `Apt`; for all releases and architectures there.
    """
    freed = 0
    for pins in root.glob("*/pins"):
        try:
            texts = [pin.read_bytes() for pin in pins.glob("*.json")]
            pinned = {row["file"] for text in texts for row in json.loads(text)}
        except (OSError, ValueError, TypeError, KeyError):
            continue  # which are needed is not known
        for file in (pins.parent / "archives").glob("*.deb"):
            if file.name not in pinned:
                freed += file.stat().st_size
                file.unlink(missing_ok=True)
    return freed


def parse_uris(text: str) -> list[Package]:
    """Read the output of ``apt-get install --print-uris``: ``'URI' FILE BYTES SHA256:DIGEST``.

    Raises:
        AssetBuildError: A line has no SHA-256 digest, so the file could not be verified.
    """
    packages = []
    for line in text.splitlines():
        if not line.startswith("'"):
            continue
        _uri, file, size, digest = line.split()
        if not digest.startswith("SHA256:"):
            raise AssetBuildError(f"apt gives no SHA-256 digest of {file}")
        name, version, _arch = file.removesuffix(".deb").rsplit("_", 2)
        packages.append(
            Package(name, unquote(version), file, int(size), digest.removeprefix("SHA256:"))
        )
    return packages


async def unpack(files: Iterable[Path], target: Path) -> None:
    """Unpack packages over each other into a directory; runs none of their scripts.

    Raises:
        AssetBuildError: One is damaged.
    """
    await asyncio.to_thread(target.mkdir, parents=True, exist_ok=True)
    for file in files:
        try:
            await run(
                [tool("dpkg-deb", package="dpkg"), "-x", str(file), str(target)], timeout_s=300
            )
        except CommandError as error:
            raise AssetBuildError(f"cannot unpack {file.name}: {error}") from error


def _batches(packages: Sequence[Package]) -> list[list[Package]]:
    """Split so that the large ones are fetched alone and the small ones together."""
    large = [[p] for p in packages if p.bytes >= 10 << 20]
    small = [p for p in packages if p.bytes < 10 << 20]
    return ([small] if small else []) + large


def _replace(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)
