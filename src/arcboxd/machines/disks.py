"""Root disks: a machine's own overlay, and beside it a name of every file that it rests on.

The files below are shared and never written. A machine holds a hard link to each and the overlay
names them relative to itself, so a machine's directory is all of it: the cache may be emptied and a
template removed, and the machine still boots.
"""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

from arcboxd.domain.image import BaseImage
from arcboxd.errors import StoreError
from arcboxd.paths import MachinePaths, TemplatePaths
from arcboxd.process import run, tool

_TIMEOUT_S = 60.0
_SECTOR_BYTES = 512
_PAGE_BYTES = 4096
_MAX_EMPTY_DISKS = 16
_empty_disks: dict[tuple[str, str, int], bytes] = {}
"""What qemu-img made, by what it was asked for: an empty disk has nothing else in it."""


async def on_image(paths: MachinePaths, image: BaseImage, size_bytes: int) -> None:
    """Make an empty disk on a base image, in place of whatever disk is there.

    Raises:
        CommandError: qemu-img failed.
        MissingToolError: qemu-img is not installed.
        StoreError: A file that it rests on is gone.
    """
    share(image.path, paths.base_image)
    paths.template_disk.unlink(missing_ok=True)
    await _overlay(paths.disk, paths.base_image.name, image.format, size_bytes)


async def on_template(paths: MachinePaths, template: TemplatePaths, size_bytes: int) -> None:
    """Make an empty disk on a template's; the same errors as `on_image`."""
    share(template.disk, paths.template_disk)
    share(template.base_image, paths.base_image)
    await _overlay(paths.disk, paths.template_disk.name, "qcow2", size_bytes)


async def grow(paths: MachinePaths, size_bytes: int) -> None:
    """Grow the root disk of a machine that has no process.

    Raises:
        CommandError: qemu-img failed; the disk is as it was.
        MissingToolError: qemu-img is not installed.
    """
    argv = [tool("qemu-img", package="qemu-utils"), "resize", "-q", "-f", "qcow2"]
    await run([*argv, str(paths.disk.absolute()), str(size_bytes)], timeout_s=_TIMEOUT_S)


def share(source: Path, target: Path) -> None:
    """Give a file that is never written a second name; a link to it where that cannot be.

    Raises:
        StoreError: Neither can be made.
    """
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        # Another filesystem, or one without hard links.
        if error.errno not in {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}:
            raise StoreError(f"cannot link {target} to {source}: {error}") from error
        target.symlink_to(source)


async def _overlay(disk: Path, backing: str, backing_format: str, size_bytes: int) -> None:
    # A new file in one step: a disk that is there is either the old one or the new.
    new = disk.with_name(f".{disk.name}.new")
    size = -(-size_bytes // _SECTOR_BYTES) * _SECTOR_BYTES
    key = (backing, backing_format, size)
    if (known := _empty_disks.get(key)) is not None:
        await asyncio.to_thread(_write_sparse, new, known)
    else:
        # `-u`: the backing file is not opened. Its name is relative to the overlay's own directory.
        argv = [tool("qemu-img", package="qemu-utils"), "create", "-q", "-u", "-f", "qcow2"]
        argv += ["-b", backing, "-F", backing_format, str(new.absolute()), str(size)]
        await run(argv, timeout_s=_TIMEOUT_S)
        if len(_empty_disks) == _MAX_EMPTY_DISKS:
            _empty_disks.clear()
        _empty_disks[key] = await asyncio.to_thread(new.read_bytes)
    new.rename(disk)


def _write_sparse(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        for start in range(0, len(data), _PAGE_BYTES):
            page = data[start : start + _PAGE_BYTES]
            if page.strip(b"\0"):
                file.seek(start)
                file.write(page)
        file.truncate(len(data))
