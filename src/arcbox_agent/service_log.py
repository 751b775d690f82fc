"""The log of a service: written by the service itself, kept within bounds by the agent."""

# pathlib is not imported: start-up takes long under emulation.
# ruff: noqa: PTH103, PTH116, PTH120

from __future__ import annotations

import logging
import os

MAX_BYTES = 4 * 1024 * 1024
"""Beyond it a log begins anew; what it was is kept as `.1`, until the next time."""

_TAIL_BYTES = 16 * 1024

_log = logging.getLogger(__name__)


def open_log(path: str) -> int:
    """Open a log for a service to append to; return the descriptor.

    Raises:
        OSError: It cannot be made.
    """
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    return os.open(path, flags, 0o640)


def rotate(path: str) -> bool:
    """Begin the log anew if it has grown too long; say whether it had.

    It is emptied, not renamed: the service holds it open, and appends at whatever its end is.
    A failure is logged. What is written between copy and cut is lost.
    """
    try:
        if os.stat(path).st_size <= MAX_BYTES:
            return False
        source = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            _keep(source, f"{path}.1")
            os.ftruncate(source, 0)
        finally:
            os.close(source)
    except FileNotFoundError:
        return False
    except OSError as error:
        _log.warning("cannot begin the log %s anew: %s", path, error)
        return False
    return True


def _keep(source: int, target: str) -> None:
    """Copy the end of a file, as much as a log may hold."""
    size = os.fstat(source).st_size
    offset = max(0, size - MAX_BYTES)
    copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        while offset < size:
            sent = os.sendfile(copy, source, offset, size - offset)
            if not sent:
                break
            offset += sent
    finally:
        os.close(copy)


def tail(path: str, line_count: int) -> str:
    """Read the last lines of a log, for people; nothing when there are none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        size = os.fstat(fd).st_size
        data = os.pread(fd, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
    finally:
        os.close(fd)
    lines = data.decode("utf-8", "replace").splitlines()
    if size > _TAIL_BYTES:
        lines = lines[1:]  # half a line
    return "\n".join(lines[-line_count:])
