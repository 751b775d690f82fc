"""The process that reads images of strangers: ``python -m arcboxd.images.worker``.

Its job comes by stdin and its answer goes to stdout, both JSON; the steps go to a file. Memory and
files are bounded, also for the programs that it runs, and whoever started it can end it all at any
moment.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from arcboxd.errors import ArcboxError, CorruptError, NoRoomError, UnsafeImageError
from arcboxd.images.build import Job, Tools, build
from arcboxd.images.ext4_write import Mke2fs
from arcboxd.images.limits import Limits

MEMORY_BYTES = 2 << 30
"""Two million files take about half of it."""
STEP = "step.json"
_NO_ROOM = {28, 122}


def main() -> None:
    """Do the job that stdin describes."""
    job = json.load(sys.stdin)
    limits = Limits()
    _bound(resource.RLIMIT_AS, MEMORY_BYTES)
    _bound(resource.RLIMIT_FSIZE, limits.disk_bytes)
    _bound(resource.RLIMIT_CORE, 0)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    json.dump(_do(job, limits), sys.stdout)


def _do(job: dict[str, str], limits: Limits) -> dict[str, object]:
    target = Path(job["target"])
    tools = Tools(Mke2fs(tuple(job["mke2fs"]), job["mke2fs_config"]), tuple(job["sqfs2tar"]))

    def step(phrase: str, done: int, total: int) -> None:
        fresh = target / f".{STEP}"
        fresh.write_text(json.dumps([phrase, done, total]))
        fresh.rename(target / STEP)

    try:
        wanted = Job(Path(job["source"]), job["stamp"], job["arch"], target)
        return asdict(build(wanted, tools, limits, step))
    except ArcboxError as error:
        return _told(error)
    except MemoryError:
        return _told(UnsafeImageError("the image needs more memory to read than an image may"))
    except RecursionError:
        return _told(CorruptError("the image is damaged: it is nested without an end"))
    except OSError as error:
        if error.errno in _NO_ROOM:
            return _told(NoRoomError(f"no room for the image in {target.parent}"))
        return _told(ArcboxError(f"cannot read the image: {error}"))


def _told(error: ArcboxError) -> dict[str, object]:
    return {"error": error.reason, "message": error.message, "hint": error.hint}


def _bound(what: int, limit: int) -> None:
    _, most = resource.getrlimit(what)
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(what, (limit, limit))


if __name__ == "__main__":
    # The kernel's answer to a pipe that nobody reads is the one that we handle ourselves.
    os.umask(0o077)
    main()
