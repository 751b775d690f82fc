"""Creating machines from an image in the cache: the time, and the room on the host's disk."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from arcboxd.settings import MIB
from bench.figures import Figure, Wanted
from bench.host import Host, timed
from bench.machines import create

MACHINES = 100
TIMES = 30
LIMIT_S = 0.15
LIMIT_MIB = 50
_BLOCK_BYTES = 512


def run(host: Host) -> list[Figure]:
    """Alternate qemu-img with a create that has the same done; then count a hundred's blocks."""
    qemu_img = shutil.which("qemu-img")
    assert qemu_img is not None
    overlay = host.paths.home / "overlay.qcow2"
    alone: list[float] = []
    took: list[float] = []
    with host.daemon(templates="off") as client:
        # Builds, that once, what is missing in the cache.
        create(client, "m0")
        base = Path(client.inspect("m0").disk_path).with_name("base.img")
        argv = [qemu_img, "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(overlay)]
        folders = (host.paths.home, host.paths.images)
        before = allocated_bytes(folders)
        for i in range(1, TIMES + 1):
            alone.append(timed(partial(subprocess.run, argv, check=True)))
            overlay.unlink()
            took.append(timed(partial(create, client, f"m{i}")))
        for i in range(TIMES + 1, MACHINES + 1):
            create(client, f"m{i}")
        added = (allocated_bytes(folders) - before) / MIB
    return [
        Figure("overlay", "qemu-img create, of the disk alone (Q)", "s", tuple(alone)),
        Figure(
            "create",
            "Create, image in the cache",
            "s",
            tuple(took),
            tuple(alone),
            "Q",
            Wanted(LIMIT_S),
        ),
        Figure(
            "added",
            f"what {MACHINES} stopped machines add on disk",
            "MiB",
            (added,),
            wanted=Wanted(LIMIT_MIB),
        ),
    ]


def allocated_bytes(folders: Iterable[Path]) -> int:
    """Count the blocks of all files and directories, each file once however many names it has."""
    seen: dict[tuple[int, int], int] = {}
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            status = path.lstat()
            seen[status.st_dev, status.st_ino] = status.st_blocks * _BLOCK_BYTES
    return sum(seen.values())
