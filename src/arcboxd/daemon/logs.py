"""The daemon's log: a file of bounded size, and the terminal when it has one."""

from __future__ import annotations

import logging
import sys
from logging.handlers import RotatingFileHandler

from arcboxd.paths import Paths

_FILE_BYTES = 2 << 20
_FILES_KEPT = 2
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_up(paths: Paths, level: str, *, terminal: bool) -> None:
    """Log to ``daemon.log``, three files of 2 MiB at most, and with ``terminal`` to stderr."""
    handlers: list[logging.Handler] = [
        RotatingFileHandler(paths.daemon_log, maxBytes=_FILE_BYTES, backupCount=_FILES_KEPT)
    ]
    if terminal:
        handlers.append(logging.StreamHandler(sys.stderr))
    logging.basicConfig(level=level.upper(), format=_FORMAT, handlers=handlers, force=True)
    # qemu.qmp logs every message of the monitor at these levels.
    logging.getLogger("qemu").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
