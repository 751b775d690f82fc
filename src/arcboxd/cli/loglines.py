"""Lines of logs: their times, and following a file on this host however it is replaced."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import BinaryIO

from arcboxd.cli.usage import CliUsageError

_POLL_S = 0.2
_CHUNK_BYTES = 1 << 16
_SPAN = re.compile(r"([0-9]+)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_RFC3339 = re.compile(rb'time="(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,6})?\d*(Z|[+-]\d\d:\d\d)"')
_LOGGING = re.compile(rb"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) ")


def since(text: str, now: datetime | None = None) -> datetime:
    """Read ``10m``, ``2h``, ``3d``, or a time such as ``2026-11-22T05:00:00``, which is local.

    Raises:
        CliUsageError: It is neither.
    """
    if match := _SPAN.fullmatch(text):
        try:
            return (now or datetime.now(UTC)) - timedelta(**{_UNITS[match[2]]: int(match[1])})
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        raise CliUsageError(
            f"--since {text!r} is neither a span of time nor a time",
            hint="such as 10m, 2h, 3d or 2026-11-22T05:00:00",
        ) from error


def line_time(line: bytes, zone: tzinfo | None) -> datetime | None:
    """Give the time that a line begins with, or None.

    Args:
        line: Of dockerd or containerd, or of Python's logging.
        zone: What the latter is in; None for this host's own.
    """
    if match := _RFC3339.search(line, 0, 80):
        day, fraction, offset = (part.decode() for part in match.groups(b""))
        # Six digits: Python 3.11 reads three or six.
        return datetime.fromisoformat(f"{day}{fraction:0<7}{offset}" if fraction else day + offset)
    if match := _LOGGING.match(line):
        moment = datetime.fromisoformat(f"{match[1].decode()}.{match[2].decode()}")
        return moment.replace(tzinfo=zone) if zone else moment.astimezone()
    return None


class After:
    """Lets lines pass from a time on. One without a time belongs to the one before it."""

    def __init__(self, moment: datetime | None, zone: tzinfo | None) -> None:
        """Begin at a moment; None for all. Lines' times are in ``zone`` where they do not say."""
        self._moment = moment
        self._zone = zone
        self._passing = moment is None
        self._latest: datetime | None = None

    def passes(self, line: bytes) -> bool:
        """Tell whether a line is wanted."""
        if (moment := line_time(line, self._zone)) is not None:
            self._latest = moment if self._latest is None else max(moment, self._latest)
            self._passing = self._moment is None or moment >= self._moment
        return self._passing

    def begin_again(self) -> None:
        """Let nothing pass twice, though the log is read from its beginning again."""
        if self._latest is not None:
            self._moment = self._latest + timedelta(microseconds=1)
            self._passing = False


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut bytes into lines with their ends; the last may have none."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"
    if rest:
        yield rest


def last(every: Iterable[bytes], count: int) -> Iterable[bytes]:
    """Give the last lines; all of them for 0."""
    return deque(every, count) if count else every


def read(path: Path) -> Iterator[bytes]:
    """Give a file in pieces; nothing if it is not there."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        while data := file.read(_CHUNK_BYTES):
            yield data


def follow(path: Path, count: int) -> Iterator[bytes]:
    """Give the last lines of a file, then all that is written to it, for ever.

    A file that is cut, or replaced by another of its name, is read from its beginning.
    """
    file: BinaryIO | None = None
    first = True
    try:
        while True:
            if file is None:
                file = _open(path)
                if file is not None and first:
                    _to_last(file, count)
                first = False
            if file is not None:
                if data := file.read(_CHUNK_BYTES):
                    yield data
                    continue
                if _replaced(file, path):
                    data = file.read()
                    file.close()
                    file = None
                    yield data
                    continue
            time.sleep(_POLL_S)
    finally:
        if file is not None:
            file.close()


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _to_last(file: BinaryIO, count: int) -> None:
    """Go to where the last lines begin."""
    if count:
        size = sum(map(len, deque(file, count)))
        file.seek(-size, 2)


def _replaced(file: BinaryIO, path: Path) -> bool:
    ours = os.fstat(file.fileno())
    try:
        theirs = path.stat()
    except FileNotFoundError:
        return False  # what is written to it may still come, and its successor later
    return not os.path.samestat(ours, theirs) or ours.st_size < file.tell()
