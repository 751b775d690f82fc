"""The disk of Kubernetes that machines get: which one, and where it comes from."""

from __future__ import annotations

import asyncio
from pathlib import Path

from arcboxd.domain.image import ProgressFn
from arcboxd.images.download import download
from arcboxd.kubernetes import distribution
from arcboxd.machines.context import Context


async def disk(ctx: Context, arch: str, progress: ProgressFn) -> Path:
    """Give the disk of the Kubernetes that the user wants, fetching and building what is missing.

    Args:
        ctx: Whose settings and cache.
        arch: The kernel's name of the architecture.
        progress: Told of each step.

    Raises:
        InvalidArgumentError: ``kubernetes.toml`` is not as it should be.
        PreconditionError: It lacks a digest or a bundle.
        CorruptError: What came is not what it says.
        ImageServerError: The server does not answer.
        AssetBuildError: A step failed, or the bundle lacks something.
        MissingToolError: A program is missing on the host.
        UnsupportedError: There is nothing for that architecture.
    """
    pin = await asyncio.to_thread(
        distribution.load, ctx.paths.kubernetes, arch, ctx.settings.k3s_binary
    )
    return await ctx.assets.kubernetes(arch, pin, fetch, progress)


async def fetch(url: str, target: Path, sha256: str, progress: ProgressFn) -> Path:
    """Fetch a file; arguments and errors are those of `arcboxd.images.download.download`."""
    return await download(
        url, target, sha256=sha256, size=None, progress=progress, what="Kubernetes"
    )
