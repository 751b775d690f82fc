"""Snapshots within the disks' own files, while no process has them open.

Source: qemu-img(1), snapshot; docs/interop/qcow2.txt of QEMU, "Snapshots".
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from arcboxd.machines.undo import Undo
from arcboxd.process import run, tool

_TIMEOUT_S = 600.0


async def make(disks: Iterable[Path], tag: str) -> None:
    """Take a snapshot in each disk, or in none.

    Raises:
        CommandError: qemu-img failed.
        MissingToolError: qemu-img is not installed.
        TooLateError: It took too long.
    """
    async with Undo() as undo:
        for disk in disks:
            undo.push_async_callback(drop, [disk], tag)
            await _snapshot("-c", tag, disk)
        undo.pop_all()


async def apply(disks: Iterable[Path], tag: str) -> None:
    """Bring each disk back to a snapshot; may be done again. The same errors as `make`."""
    for disk in disks:
        await _snapshot("-a", tag, disk)


async def drop(disks: Iterable[Path], tag: str) -> None:
    """Remove a snapshot from every disk that has it; the same errors as `make`."""
    for disk in disks:
        if tag in await tags(disk):
            await _snapshot("-d", tag, disk)


async def tags(disk: Path) -> set[str]:
    """Name the snapshots of a disk, which a machine may have open; the same errors as `make`."""
    argv = [tool("qemu-img", package="qemu-utils"), "info", "-U", "--output=json"]
    output = await run([*argv, str(disk)], timeout_s=_TIMEOUT_S)
    return {str(each["name"]) for each in json.loads(output.stdout).get("snapshots", ())}


async def _snapshot(verb: str, tag: str, disk: Path) -> None:
    argv = [tool("qemu-img", package="qemu-utils"), "snapshot", "-q", verb, tag]
    await run([*argv, str(disk)], timeout_s=_TIMEOUT_S)
