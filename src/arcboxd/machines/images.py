"""Base images in use: which there are, what rests on them, and how they come and go."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from arcboxd.domain.image import BaseImage, NewImage, ProgressFn
from arcboxd.domain.machine import MachineState
from arcboxd.errors import ArcboxError, ImageNotFoundError, InvalidArgumentError, PreconditionError
from arcboxd.machines.context import Context
from arcboxd.machines.validate import check_arch

_log = logging.getLogger(__name__)

SUBJECT = "image"
"""Of the events that tell how an image comes to be."""

_MIN_PREFIX = 4
_BLOCK_BYTES = 512
_NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ImageUse:
    """A base image, and what rests on it."""

    image: BaseImage
    allocated_bytes: int
    machines: tuple[str, ...]
    """Their names."""
    templates: int


async def uses(ctx: Context) -> list[ImageUse]:
    """Give every image, oldest first."""
    return [await use(ctx, image) for image in await ctx.images.list()]


async def use(ctx: Context, image: BaseImage) -> ImageUse:
    """Tell what rests on an image."""
    machines = [m.spec.name for m in ctx.registry.all() if m.image_key == image.key]
    return ImageUse(
        image,
        allocated_bytes=await asyncio.to_thread(_allocated_bytes, image),
        machines=tuple(sorted(machines)),
        templates=sum(t.shape.image_key == image.key for t in ctx.templates.all()),
    )


async def pull(ctx: Context, distro: str, version: str, arch: str) -> ImageUse:
    """Build or fetch an image, or a newer one where its source has one.

    Raises:
        ArcboxError: As `Images.ensure`.
    """
    wanted = distro or ctx.settings.default_distro
    return await use(ctx, await ctx.images.pull(wanted, version, arch, _reporter(ctx)))


async def import_file(ctx: Context, new: NewImage) -> ImageUse:
    """Make an image of a file on the host.

    Raises:
        ArcboxError: As `Images.import_file`.
    """
    return await use(ctx, await ctx.images.import_file(new, _reporter(ctx)))


async def remove(ctx: Context, ref: str) -> int:
    """Remove an image, and give the bytes that this frees.

    Raises:
        ImageNotFoundError: There is none.
        InvalidArgumentError: It is not one that is named.
        PreconditionError: A machine or a template rests on it.
        StoreError: It cannot be removed.
    """
    image = await _find(ctx, ref)
    found = await use(ctx, image)
    if found.machines:
        names = ", ".join(found.machines[:_NAMES_SHOWN])
        more = f" and {len(found.machines) - _NAMES_SHOWN} more"
        raise PreconditionError(
            f"machines rest on the image {image.key[:12]}:"
            f" {names}{more if len(found.machines) > _NAMES_SHOWN else ''}",
            hint="remove these machines first",
        )
    if found.templates:
        raise PreconditionError(
            f"{found.templates} templates rest on the image {image.key[:12]}",
            hint="remove them first: arcbox template ls, arcbox template rm",
        )
    if _being_made(ctx, image):
        raise PreconditionError(
            f"a machine is being created from the image {image.key[:12]}",
            hint="try again once it is there",
        )
    return await ctx.images.remove(image)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed."""

    keys: Sequence[str]
    """Of images."""
    boot_files: Sequence[str]
    """Names in the cache."""
    freed_bytes: int


async def prune(ctx: Context) -> Pruned:
    """Remove the images and boot files that no new machine would get, and that nothing rests on.

    Raises:
        StoreError: One cannot be removed.
    """
    keys, freed = [], 0
    for found in await uses(ctx):
        image = found.image
        if found.machines or found.templates or _being_made(ctx, image):
            continue
        if not await _current(ctx, image):
            freed += await ctx.images.remove(image)
            keys.append(image.key)
            _log.info("removed the image %s of %s %s", image.key[:12], image.distro, image.version)
    boot_files, more = await ctx.assets.prune()
    if boot_files:
        _log.info("removed %s", ", ".join(boot_files))
    return Pruned(keys, boot_files, freed + more)


async def update(ctx: Context, arch: str) -> tuple[str, bool]:
    """Make what machines boot from of newer packages; for their next start.

    Gives the kernel's version, and whether anything is new.

    Raises:
        ArcboxError: As `Assets.refresh`.
        InvalidArgumentError: There is no such architecture.
    """
    boot, changed = await ctx.assets.refresh(check_arch(arch), _reporter(ctx))
    return boot.kernel_version, changed


async def verify(ctx: Context, ref: str) -> list[str]:
    """Name the files of an image that are not what was built; reads all of it.

    Raises:
        ImageNotFoundError: There is none.
        InvalidArgumentError: It is not one that is named.
        CorruptError: It is no image any more.
    """
    return list(await ctx.images.verify(await _find(ctx, ref)))


async def _find(ctx: Context, ref: str) -> BaseImage:
    """Give the image that a key, a unique prefix of one, or NAME:VERSION names."""
    images = await ctx.images.list()
    found = [i for i in images if ref in {i.key, f"{i.distro}:{i.version}", i.distro}]
    if not found and len(ref) >= _MIN_PREFIX and re.fullmatch("[0-9a-f]+", ref):
        found = [i for i in images if i.key.startswith(ref)]
    if len(found) > 1:
        keys = ", ".join(image.key[:12] for image in found[:_NAMES_SHOWN])
        raise InvalidArgumentError(
            f"{ref[:80]!r} names {len(found)} images: {keys}", hint="give one by its key"
        )
    if not found:
        raise ImageNotFoundError(
            f"there is no image {ref[:80]!r}", hint="see them all with: arcbox image ls"
        )
    return found[0]


async def _current(ctx: Context, image: BaseImage) -> bool:
    """Tell whether a new machine of the image's name would get it."""
    version = "" if image.source == "oci" else image.version
    try:
        found = await ctx.images.find(image.distro, version, image.arch)
    except ArcboxError:
        return False
    return found is not None and found.key == image.key


def _being_made(ctx: Context, image: BaseImage) -> bool:
    return any(
        m.state is MachineState.CREATING and m.spec.distro == image.distro
        for m in ctx.registry.all()
    )


def _reporter(ctx: Context) -> ProgressFn:
    def report(step: str, done: int, total: int) -> None:
        ctx.events.progress(SUBJECT, step, done, total, finished=0 < total <= done)

    return report


def _allocated_bytes(image: BaseImage) -> int:
    try:
        return image.path.stat().st_blocks * _BLOCK_BYTES
    except OSError:
        return 0
