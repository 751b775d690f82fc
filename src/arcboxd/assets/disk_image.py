"""Read-only filesystem images of directories, the same bytes for the same files."""

from __future__ import annotations

from pathlib import Path

from arcboxd.errors import AssetBuildError
from arcboxd.process import CommandError, run, tool

_TIMEOUT_S = 600.0
_UUID = "00000000-0000-0000-0000-000000000000"


async def make_erofs(tree: Path, image: Path) -> None:
    """Pack a directory uncompressed, all owned by root and with time 0.

    Raises:
        AssetBuildError: mkfs.erofs failed.
        MissingToolError: It is not installed.
    """
    fixed = ["--quiet", "--all-root", "-T0", f"-U{_UUID}", "-x-1"]
    program = tool("mkfs.erofs", package="erofs-utils")
    await _run([program, *fixed, str(image), str(tree)], tree)


async def make_squashfs(tree: Path, image: Path, *, options: tuple[str, ...] = ()) -> None:
    """Pack a directory, all owned by root and with time 0.

    Raises:
        AssetBuildError: mksquashfs failed.
        MissingToolError: It is not installed.
    """
    fixed = ["-noappend", "-all-root", "-no-xattrs", "-no-progress", "-quiet"]
    times = ["-all-time", "0", "-mkfs-time", "0"]
    program = tool("mksquashfs", package="squashfs-tools")
    await _run([program, str(tree), str(image), *fixed, *times, *options], tree)


async def _run(argv: list[str], tree: Path) -> None:
    try:
        await run(argv, timeout_s=_TIMEOUT_S)
    except CommandError as error:
        raise AssetBuildError(f"cannot make an image of {tree.name}: {error}") from error
