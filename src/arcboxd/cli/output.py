"""What goes to stdout: tables, fields and JSON. Only data; words for people go to stderr.

On a terminal a table is rich's. In a pipe it is aligned text, for `awk` and `cut`, whatever the
width, and rich, which takes 60 to 130 ms to import, is not.
"""

# ruff: noqa: PLC0415 - rich is imported only where it is used

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from rich.table import Table

_COLOURS = {
    "running": "green",
    "starting": "yellow",
    "stopping": "yellow",
    "suspending": "yellow",
    "suspended": "cyan",
    "creating": "yellow",
    "removing": "yellow",
    "unknown": "red",
}
_SECONDS = (
    (365 * 86400, "year"),
    (30 * 86400, "month"),
    (7 * 86400, "week"),
    (86400, "day"),
    (3600, "hour"),
    (60, "minute"),
    (1, "second"),
)

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
"""What JSON can say."""


def printable(text: str) -> str:
    r"""Make control characters visible: what a guest says must not drive the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def rfc3339(moment: datetime) -> str:
    """Write a time in UTC, to the second: ``2026-01-31T12:00:00Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def age(moment: datetime, now: datetime | None = None) -> str:
    """Tell how long ago it was, in its largest whole unit: ``3 hours ago``."""
    seconds = int(((now or datetime.now(UTC)) - moment).total_seconds())
    span = duration(seconds)
    return f"{span} ago" if span else "just now"


def duration(seconds: int) -> str:
    """Name a span of time by its largest whole unit; nothing below a second."""
    for unit, name in _SECONDS:
        if seconds >= unit:
            count = seconds // unit
            return f"{count} {name}{'s' if count > 1 else ''}"
    return ""


def plain(value: object) -> Plain:
    """Reduce a view to what JSON can say: keys are the fields' names, times RFC 3339."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    raise TypeError(type(value))


def print_json(
    value: DataclassInstance | Iterable[DataclassInstance] | Mapping[str, object],
    *,
    one_line: bool = False,
) -> None:
    """Print a view, a dictionary or a list of views, in ASCII; indented unless on one line."""
    whole = value if isinstance(value, Mapping) or dataclasses.is_dataclass(value) else list(value)
    print(json.dumps(plain(whole), indent=None if one_line else 2))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns; on a terminal the states are coloured."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(rich_table(headers, rows))
        return
    table = [list(headers), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(headers))]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("   ".join(cells).rstrip())


def rich_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Make a table for a terminal, its states coloured."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell), style=_COLOURS.get(cell, "")) for cell in row))
    return table


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Print names and values, the values aligned; those with no value are left out."""
    given = [(name, printable(value)) for name, value in fields if value]
    width = max((len(name) for name, _ in given), default=0)
    for name, value in given:
        print(f"{name + ':':<{width + 1}} {value}")


def colours(stream: TextIO) -> bool:
    """Tell whether a stream should get colours: a terminal, and nobody said no (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
