"""``arcbox top``: what machines use of the host, as it changes."""
# ruff: noqa: PLC0415 - see session; rich only on a terminal

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from arcboxd.cli import session
from arcboxd.cli.output import print_json, print_table, rich_table
from arcboxd.cli.sizes import format_size
from arcboxd.cli.usage import CliUsageError

if TYPE_CHECKING:
    from rich.console import Group

    from arcboxd.client.client import Client
    from arcboxd.client.views import Usage

_HEADERS = ("NAME", "OWN", "SHARED", "SWAP", "GUEST USED / MEMORY", "CPU %")
_MIN_S, _MAX_S = 0.1, 3600.0

Percents = Mapping[str, float | None]
"""Of one processor, by machine id; None: not known yet."""


def top(
    ctx: typer.Context,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time from one look to the next.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, one document a look.")
    ] = False,
) -> None:
    """Show what machines use of the host.

    On a terminal until q or Ctrl-C, elsewhere once; JSON goes on until Ctrl-C, unless --once.
    OWN memory comes back when the machine ends; SHARED is mapped from files that others may map
    too, such as a template's memory. CPU % is of one processor, since the last look.
    """
    if not _MIN_S <= interval <= _MAX_S:
        raise CliUsageError(f"--interval must be from {_MIN_S:g} to {_MAX_S:g} seconds")
    with session.connect(ctx) as client:
        if as_json:
            _documents(client, interval, once=once)
        elif once or not _drawable():
            usage = client.usage()
            print_table(_HEADERS, rows(usage, {}))
            print(host_line(usage))
        else:
            _live(client, interval)


class Meter:
    """Tells the processors' use between two looks."""

    def __init__(self) -> None:
        """Have looked at nothing yet."""
        self._before: dict[str, tuple[float, float]] = {}

    def percents(self, usage: Usage, now_s: float) -> Percents:
        """Compare with the look before.

        Args:
            usage: What was seen.
            now_s: When, by a monotonic clock.
        """
        seen = {m.id: (now_s, m.cpu_seconds) for m in usage.machines}
        result = {key: _percent(self._before.get(key), now) for key, now in seen.items()}
        self._before = seen
        return result


def _percent(before: tuple[float, float] | None, now: tuple[float, float]) -> float | None:
    # Less than before: the machine has another process by now.
    if before is None or now[0] <= before[0] or now[1] < before[1]:
        return None
    return 100 * (now[1] - before[1]) / (now[0] - before[0])


def rows(usage: Usage, percents: Percents) -> list[tuple[str, ...]]:
    """Give a row of the table for each machine."""
    table: list[tuple[str, ...]] = []
    for m in usage.machines:
        used = "-" if m.guest_used_bytes is None else format_size(m.guest_used_bytes)
        percent = percents.get(m.id)
        table.append(
            (
                m.name,
                format_size(m.own_bytes),
                format_size(m.shared_bytes),
                format_size(m.swapped_bytes),
                f"{used} / {format_size(m.memory_bytes)}",
                "-" if percent is None else f"{percent:.1f}",
            )
        )
    return table


def host_line(usage: Usage) -> str:
    """Tell of the host's memory."""
    available = format_size(usage.host_available_bytes)
    return f"Host memory: {format_size(usage.host_memory_bytes)}, {available} available"


def _document(usage: Usage, percents: Percents) -> dict[str, object]:
    fields = asdict(usage)
    fields["machines"] = [{**asdict(m), "cpu_percent": percents[m.id]} for m in usage.machines]
    return fields


def _documents(client: Client, interval_s: float, *, once: bool) -> None:
    from arcboxd.cli.terminal import Keys

    meter, nobody = Meter(), Keys(None)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            usage = client.usage()
            print_json(_document(usage, meter.percents(usage, time.monotonic())), one_line=not once)
            sys.stdout.flush()
            if once:
                return
            nobody.pressed(b"", interval_s)


def _drawable() -> bool:
    """Tell whether stdout is a terminal on which something can be drawn anew."""
    return sys.stdout.isatty() and os.environ.get("TERM") not in {None, "", "dumb", "unknown"}


def _live(client: Client, interval_s: float) -> None:
    from rich.console import Console
    from rich.live import Live

    from arcboxd.cli.terminal import Keys, handling, key_mode

    meter = Meter()

    def look() -> Group:
        usage = client.usage()
        return _screen(usage, meter.percents(usage, time.monotonic()))

    # So that the terminal gets back its mode and its cursor, whatever ends us.
    handlers = dict.fromkeys((signal.SIGTERM, signal.SIGHUP), _end)
    with (
        contextlib.suppress(KeyboardInterrupt),
        handling(handlers),
        contextlib.ExitStack() as stack,
    ):
        keys = Keys(0 if os.isatty(0) else None)
        if os.isatty(0):
            stack.enter_context(key_mode(0))
        live = Live(
            look(),
            console=Console(),
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        # Not as a context: a signal may come while it starts, which hides the cursor.
        stack.callback(live.stop)
        live.start(refresh=True)
        while not keys.pressed(b"qQ", interval_s):
            live.update(look(), refresh=True)


def _screen(usage: Usage, percents: Percents) -> Group:
    from rich.console import Group
    from rich.text import Text

    return Group(rich_table(_HEADERS, rows(usage, percents)), Text(host_line(usage)))


def _end(number: int) -> None:
    raise SystemExit(128 + number)
