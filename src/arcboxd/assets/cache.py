"""A cache of things that are built once: one read-only directory for each kind and key.

A key is a hash of everything that an entry is made from, so an entry never changes and is never
checked for age. What is half made is never seen under its final name: it is built beside it, synced
to the disk and renamed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
)
from dataclasses import dataclass
from pathlib import Path

from arcboxd import durable
from arcboxd.errors import ArcboxError, AssetBuildError, NoRoomError
from arcboxd.process import run, tool

MANIFEST = "manifest.json"
FORMAT = 1
"""Of the manifest and of the layout; part of every key, so that a change rebuilds everything."""

Inputs = Mapping[str, str | int | list[str]]
BuildFn = Callable[[Path], Awaitable[None]]

_LOCK_POLL_S = 0.1
_CHUNK_BYTES = 1 << 20
_BLOCK_BYTES = 512
_ENTRY = re.compile(rb"/([a-z]+-[0-9a-f]{32})/")


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished directory of the cache."""

    kind: str
    key: str
    path: Path
    inputs: Mapping[str, object]

    @property
    def name(self) -> str:
        """Name its directory."""
        return self.path.name

    def file(self, name: str) -> Path:
        """Name one of its files."""
        return self.path / name


def key_of(inputs: Inputs) -> str:
    """Hash what an entry is made from: 32 hexadecimal digits, the same on every host."""
    text = json.dumps({"format": FORMAT, **inputs}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Cache:
    """Entries below one directory, shared by all processes of a user.

    Layout: ``KIND-KEY/`` is finished, ``KIND-KEY.partial/`` is being made or was left by a crash,
    ``.locks/KIND-KEY`` is held (flock) by whoever makes it.
    """

    def __init__(self, root: Path) -> None:
        """Use ``root``, which is made when something is first built."""
        self._root = root

    def find(self, kind: str, key: str) -> Entry | None:
        """Give an entry that is finished and whole; a file of the wrong size makes it absent.

        Digests are not checked here, since a warm start has no time to read everything:
        `verify` does.
        """
        path = self._root / f"{kind}-{key}"
        try:
            manifest = json.loads((path / MANIFEST).read_bytes())
            for name, facts in manifest["files"].items():
                if (path / name).lstat().st_size != facts["bytes"]:
                    return None
            return Entry(kind, key, path, manifest["inputs"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def entries(self, kind: str) -> Iterator[Entry]:
        """List the finished entries of a kind."""
        for path in sorted(self._root.glob(f"{kind}-*")):
            if entry := self.find(kind, path.name.removeprefix(f"{kind}-")):
                yield entry

    async def ensure(
        self,
        kind: str,
        inputs: Inputs,
        build: BuildFn,
        *,
        on_wait: Callable[[], None] = lambda: None,
    ) -> Entry:
        """Give the entry of these inputs, and build it first when it is missing.

        Of several builders, in any number of processes, one builds and the others wait for it. A
        cancelled or failed build leaves nothing; a killed one leaves a directory that the next
        builder of anything removes.

        Args:
            kind: A short name, the first part of the directory's.
            inputs: Everything that the result depends on.
            build: Fills the directory that it is given.
            on_wait: Called once if another builder is at work on the same entry.

        Raises:
            AssetBuildError: ``build`` failed.
            NoRoomError: The disk is full.
        """
        key = key_of(inputs)
        if entry := self.find(kind, key):
            return entry
        async with self._lock(f"{kind}-{key}", on_wait):
            if entry := self.find(kind, key):  # made while we waited
                return entry
            await self._sweep()
            await self._build(kind, key, inputs, build)
        if (entry := self.find(kind, key)) is None:
            raise AssetBuildError(f"the {kind} just built in {self._root} is not whole")
        return entry

    def verify(self, entry: Entry) -> list[str]:
        """Name the files of an entry whose content is not what was built; reads everything."""
        files = json.loads(entry.file(MANIFEST).read_bytes())["files"]
        return [n for n, facts in files.items() if _digest(entry.path / n) != facts["sha256"]]

    def remove(self, entry: Path) -> int:
        """Remove an entry's directory; give the bytes freed: none of files named elsewhere, too.

        Raises:
            StoreError: It cannot be removed.
        """
        # At one stroke it is no entry any more; the next builder sweeps what a crash leaves.
        doomed = entry.with_name(f"{entry.name}.partial")
        with durable.storing(f"remove {entry}"):
            states = [path.lstat() for path in entry.rglob("*")]
            freed = sum(s.st_blocks * _BLOCK_BYTES for s in states if s.st_nlink == 1)
            entry.rename(doomed)
            shutil.rmtree(doomed)
        return freed

    async def prune(self, kinds: Iterable[str], keep: Collection[str]) -> tuple[list[str], int]:
        """Remove all entries of these kinds but those with these names, and those in use.

        In use is what a process of this host was started with or has open, whoever's it is, and
        what somebody makes at the moment.

        Returns:
            The names of those that went, and the bytes that this freed.

        Raises:
            StoreError: One cannot be removed.
        """
        used = await asyncio.to_thread(_named_by_processes)
        names, freed = [], 0
        for entry in [entry for kind in kinds for entry in self.entries(kind)]:
            if entry.name in keep or entry.name in used:
                continue
            with contextlib.suppress(BlockingIOError), self._try_lock(entry.name):
                freed += await asyncio.to_thread(self.remove, entry.path)
                names.append(entry.name)
        return names, freed

    async def _build(self, kind: str, key: str, inputs: Inputs, build: BuildFn) -> None:
        final = self._root / f"{kind}-{key}"
        partial = final.with_name(final.name + ".partial")
        try:
            partial.mkdir()
            await build(partial)
            await asyncio.to_thread(_finish, partial, kind, key, inputs)
            if final.exists():  # there, but not whole
                await remove_tree(final)
            partial.rename(final)
            durable.sync(self._root)
        except ArcboxError as error:
            if isinstance(error, AssetBuildError) or type(error).kind is not ArcboxError.kind:
                raise
            raise AssetBuildError(f"cannot build the {kind}: {error}") from error
        except OSError as error:
            if error.errno in {28, 122}:  # ENOSPC, EDQUOT
                raise NoRoomError(
                    f"no room in {self._root} to build the {kind}",
                    hint="make room, or set XDG_CACHE_HOME to a larger disk",
                ) from error
            raise AssetBuildError(f"cannot build the {kind} in {self._root}: {error}") from error
        finally:
            await asyncio.shield(remove_tree(partial))

    async def _sweep(self) -> None:
        """Remove what killed builders left: directories whose lock nobody holds."""
        for path in self._root.glob("*.partial"):
            with contextlib.suppress(BlockingIOError), self._try_lock(path.name[:-8]):
                await remove_tree(path)

    @contextlib.asynccontextmanager
    async def _lock(self, name: str, on_wait: Callable[[], None]) -> AsyncIterator[None]:
        told = False
        while True:
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(self._try_lock(name))
                except BlockingIOError:
                    if not told:
                        on_wait()
                        told = True
                else:
                    yield
                    return
            # flock has no event to wait for, and a thread blocked in it cannot be cancelled.
            await asyncio.sleep(_LOCK_POLL_S)

    @contextlib.contextmanager
    def _try_lock(self, name: str) -> Iterator[None]:
        """Hold a lock file.

        Raises:
            BlockingIOError: Another process, or another task of this one, holds it.
        """
        locks = self._root / ".locks"
        locks.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(fd)


async def remove_tree(path: Path) -> None:
    """Remove a directory and all in it, also what belongs to the user's subordinate ids.

    Idempotent. A root filesystem unpacked without root belongs to ids of /etc/subuid, which only a
    user namespace may remove.
    """
    await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
    if await asyncio.to_thread(path.exists) and os.geteuid() != 0:
        unshare = [tool("unshare", package="util-linux"), "--map-auto", "--map-root-user"]
        with contextlib.suppress(ArcboxError):
            await run([*unshare, "rm", "-rf", str(path)], timeout_s=300)


def _named_by_processes() -> set[str]:
    words = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended, or is another user's
            words.append((process / "cmdline").read_bytes())
            for fd in (process / "fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # it was closed
                    words.append(bytes(fd.readlink()))
    return {name.decode() for word in words for name in _ENTRY.findall(word)}


def _finish(directory: Path, kind: str, key: str, inputs: Inputs) -> None:
    """Describe the files, make them read-only and sync all to the disk."""
    files: dict[str, dict[str, str | int]] = {}
    folders = {directory}
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            continue
        if path.is_dir():
            folders.add(path)
            continue
        path.chmod(0o555 if path.stat().st_mode & 0o100 else 0o444)
        durable.sync(path)
        name = str(path.relative_to(directory))
        files[name] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "key": key,
        "inputs": inputs,
        "bytes": sum(int(facts["bytes"]) for facts in files.values()),
        "files": files,
    }
    target = directory / MANIFEST
    target.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    target.chmod(0o444)
    durable.sync(target)
    for folder in folders:
        durable.sync(folder)


def _digest(path: Path) -> str:
    """Hash what a file holds, its holes left out: a disk image of gigabytes is mostly holes.

    Without holes this is the file's SHA-256. Packing, digesting and syncing a 3 GiB image with
    230 MB of data took 16 s with the holes read as zeros and 3.5 s without (busy 2-core host).
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size, end = os.fstat(file.fileno()).st_size, 0
        while end < size:
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                break
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            os.lseek(file.fileno(), begin, os.SEEK_SET)
            while begin < end and (data := file.read(min(end - begin, _CHUNK_BYTES))):
                digest.update(data)
                begin += len(data)
    return digest.hexdigest()
