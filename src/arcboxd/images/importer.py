"""Has an image made of a file by a process of its own, and tells how it goes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arcboxd import aio, errors
from arcboxd.assets.ext4_tools import ImageTools
from arcboxd.domain.image import ProgressFn
from arcboxd.errors import ArcboxError, AssetBuildError, CorruptError, InvalidArgumentError
from arcboxd.images.build import ROOT, Built
from arcboxd.images.rootfs import System
from arcboxd.images.streams import stamp_of
from arcboxd.images.worker import STEP
from arcboxd.process import CommandError, run

RECIPE = "1"
"""Raised when something else is made of the same file."""

_TIMEOUT_S = 3600.0
_POLL_S = 0.2
_CHUNK_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """What an image is made of."""

    path: Path
    """A file; or a directory that is an OCI layout of our own making."""
    sha256: str
    stamp: str = ""
    """Of the file when its digest was taken; a file that changes later is refused."""


async def digested(path: Path, progress: ProgressFn) -> Source:
    """Read a file and give its digest.

    Raises:
        InvalidArgumentError: There is no such file, or it cannot be read.
    """
    try:
        # Not blocking, for what is a pipe and no file.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"cannot read {str(path)[:200]!r}: {error}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgumentError(f"{path} is no file")
    found, done = hashlib.sha256(), 0
    with os.fdopen(fd, "rb", buffering=0) as file:
        total, stamp = os.fstat(fd).st_size, stamp_of(os.fstat(fd))
        while data := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            await asyncio.to_thread(found.update, data)
            done += len(data)
            progress("checking the image's digest", done, total)
    return Source(path, found.hexdigest(), stamp)


async def checked(path: Path, wanted: str, progress: ProgressFn) -> Source:
    """Read a file whose SHA-256 must be ``wanted``, unless that is empty.

    Raises:
        CorruptError: It is another one.
        InvalidArgumentError: There is no such file, or ``wanted`` is no digest.
    """
    wanted = wanted.lower().removeprefix("sha256:")
    if wanted and (re.fullmatch("[0-9a-f]{64}", wanted) is None):
        raise InvalidArgumentError(f"{wanted[:80]!r} is no SHA-256 digest: 64 hexadecimal digits")
    found = await digested(path, progress)
    if wanted and found.sha256 != wanted:
        raise CorruptError(
            f"the SHA-256 digest of {path} is {found.sha256}, not {wanted}",
            hint="it was damaged on its way, or is another file: get it again",
        )
    return found


async def make(
    source: Source, arch: str, target: Path, tools: ImageTools, progress: ProgressFn
) -> Built:
    """Make ``root.img`` in ``target``, an empty directory.

    Cancelled, the process and all that it started are gone.

    Args:
        source: What it is made of.
        arch: By the kernel's name.
        target: An empty directory; also used for scratch.
        tools: The programs that are not the host's.
        progress: Told of each step.

    Raises:
        ArcboxError: As `arcboxd.images.build.build` says.
    """
    job = {
        "source": str(source.path),
        "stamp": source.stamp,
        "arch": arch,
        "target": str(target),
        "mke2fs": tools.command("mke2fs"),
        "mke2fs_config": str(tools.mke2fs_config),
        "sqfs2tar": tools.command("sqfs2tar"),
    }
    watcher = aio.spawn(_watch(target / STEP, progress), name="image-steps")
    try:
        argv = [sys.executable, "-P", "-m", "arcboxd.images.worker"]
        out = await run(argv, timeout_s=_TIMEOUT_S, stdin=json.dumps(job).encode())
        answer = json.loads(out.stdout)
    except (CommandError, ValueError) as error:
        raise AssetBuildError(f"the image could not be read: {error}") from error
    finally:
        await aio.cancel(watcher)
    if "error" in answer:
        raise _raised(answer)
    await asyncio.to_thread(_keep_only, target, ROOT)
    return Built(int(answer["virtual_bytes"]), System(**answer["system"]))


def _raised(answer: dict[str, str]) -> ArcboxError:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    known = {c("").reason: c for c in classes if issubclass(c, ArcboxError)}
    return known.get(answer["error"], ArcboxError)(answer["message"], hint=answer["hint"])


async def _watch(file: Path, progress: ProgressFn) -> None:
    seen: Sequence[object] = ()
    while True:
        with contextlib.suppress(OSError, ValueError):
            step = json.loads(await asyncio.to_thread(file.read_text))
            if step != seen:
                seen = step
                phrase, done, total = step
                progress(phrase, done, total)
        await asyncio.sleep(_POLL_S)  # a file: it has no event


def _keep_only(folder: Path, name: str) -> None:
    for path in folder.iterdir():
        if path.name != name:
            path.unlink()
