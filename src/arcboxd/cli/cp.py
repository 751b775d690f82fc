"""``arcbox cp``: files and trees, into a machine and out of it."""
# ruff: noqa: PLC0415 - see session

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING, Annotated, Self

import typer

from arcboxd.cli import params, session
from arcboxd.cli.output import printable
from arcboxd.cli.usage import CliUsageError

if TYPE_CHECKING:
    from arcboxd.cli.progress import Bars

_REMOTE = re.compile(r"([a-z0-9][a-z0-9-]*):(.*)", re.DOTALL)
_SHOW_S = 0.1


def cp(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SRC", help="A path, or NAME:/PATH.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="A path, or NAME:/PATH.")],
    quiet: params.Quiet = False,
) -> None:
    """Copy a file or a directory into a running machine, or out of it.

    Into DST if that is a directory, else as that name; SRC/. means what is in SRC. Modes, times and
    links are kept. In a machine it all belongs to the owner of the directory that it is put into,
    here to you. A path with a colon is written as ./PATH.
    """
    from_machine, to_machine = parse_remote(source), parse_remote(target)
    if (from_machine is None) == (to_machine is None):
        raise CliUsageError(
            "one of SRC and DST is a path in a machine, and the other is one of this host",
            hint="for example: arcbox cp notes.txt dev:/root/",
        )
    from arcboxd.client.copying import copy_in, copy_out

    skipped: list[str] = []

    def skip(name: str, why: str) -> None:
        skipped.append(name)
        session.tell(f"left out: {printable(name)}: {printable(why)}")

    with session.connect(ctx) as client:
        if to_machine is not None:
            ref, path = to_machine
            with _Shown(ref, quiet=quiet) as shown:
                copy_in(client, ref, source, path, report=shown.report, skipped=skip)
        elif from_machine is not None:
            ref, path = from_machine
            with _Shown(ref, quiet=quiet) as shown:
                copy_out(client, ref, path, target, report=shown.report, skipped=skip)
    if skipped:
        raise typer.Exit(1)


def parse_remote(text: str) -> tuple[str, str] | None:
    """Read ``NAME:/PATH``; None for a path of the host.

    Raises:
        CliUsageError: The path is not absolute.
    """
    match = _REMOTE.fullmatch(text)
    if match is None:
        return None
    if not match[2].startswith("/"):
        raise CliUsageError(
            f"{text!r} names a machine, but its path does not begin with a slash",
            hint=f"write {match[1]}:/PATH; or ./{text} for a file of this host",
        )
    return match[1], match[2]


class _Shown:
    """A bar on a terminal, and nothing elsewhere."""

    def __init__(self, name: str, *, quiet: bool) -> None:
        self._name = name
        self._wanted = not quiet and sys.stderr.isatty()
        self._bars: Bars | None = None
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bars is not None:
            self._bars.close()

    def report(self, done: int, total: int) -> None:
        """Show how far it is, now and then."""
        now = time.monotonic()
        if not self._wanted or now < self._next:
            return
        from arcboxd.cli.progress import Bars
        from arcboxd.client.views import ProgressEvent

        self._next = now + _SHOW_S
        self._bars = self._bars or Bars()
        self._bars.show(ProgressEvent(self._name, "copying", done, total, finished=False))
