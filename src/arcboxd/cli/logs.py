"""``arcbox logs``: what a machine and what serves it have written."""
# ruff: noqa: PLC0415, PLR0917 - see session; a parameter an option

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable, Iterator
from datetime import UTC, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arcboxd.cli import params, session
from arcboxd.cli.output import printable
from arcboxd.cli.usage import CliUsageError
from arcboxd.errors import ArcboxError, ErrorKind, PreconditionError

if TYPE_CHECKING:
    from arcboxd.cli.loglines import After
    from arcboxd.client.client import Client

_IN_GUEST = {
    "agent": "/run/arcbox/agent.log",
    "dockerd": "/var/log/arcbox/dockerd.log",
    "containerd": "/var/log/arcbox/containerd.log",
}
_BUSYBOX = "/run/arcbox/bundle/bin/busybox"
_SOURCES = (*_IN_GUEST, "serial", "daemon")
_RUNNING = "running"
_POLL_S = 1.0
_PASSING = frozenset({ErrorKind.UNREACHABLE, ErrorKind.WRONG_STATE, ErrorKind.BUSY})
"""What a machine that reboots, or a daemon that begins anew, answers for a while."""


def logs(
    ctx: typer.Context,
    name: params.MachineOrDefault = "",
    source: Annotated[
        str,
        typer.Option(
            "--source",
            "-s",
            metavar="SOURCE",
            help="agent, dockerd, containerd, serial (what kernel and init wrote) or daemon; "
            "without it agent, and serial of a machine that does not run.",
        ),
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as more comes.")] = False,
    since: Annotated[
        str,
        typer.Option(metavar="TIME", help="Only from then on: 10m, 2h, or 2026-11-22T05:00:00."),
    ] = "",
    count: Annotated[
        int, typer.Option("--lines", "-n", metavar="N", help="Of the last N lines; 0 is all.")
    ] = 0,
) -> None:
    """Print a log of a machine, or the daemon's.

    With -f it goes on, though the log is rotated or the machine reboots, until it is interrupted.
    """
    from arcboxd.cli import loglines

    if source and source not in _SOURCES:
        raise CliUsageError(f"no log is {source!r}", hint=f"there are: {', '.join(_SOURCES)}")
    if not name and source != "daemon":
        raise CliUsageError("no machine was named", hint="only --source daemon needs none")
    if count < 0:
        raise CliUsageError("--lines cannot be negative")
    moment = loglines.since(since) if since else None
    path = session.paths(ctx).daemon_log
    if source != "daemon":
        with session.connect(ctx) as client:
            source, path = _found(client, name, source)
    if source == "serial" and moment is not None:
        raise CliUsageError(
            "--since needs times in the lines, and a serial console writes none",
            hint="leave it out; --lines 100 prints the last hundred",
        )
    # The agent's clock is in UTC, as guests' are; the daemon's is the host's.
    zone: tzinfo | None = None if source == "daemon" else UTC
    after = loglines.After(moment, zone)
    chunks: Iterable[bytes]
    if source in _IN_GUEST:
        tail = _Tail(ctx, name, source, after, count)
        chunks = tail.follow() if follow else tail.read()
    elif follow:
        chunks = loglines.follow(path, count)
    else:
        chunks = loglines.last(loglines.lines(loglines.read(path)), count)
    _print(chunks, after)


def _found(client: Client, name: str, source: str) -> tuple[str, Path]:
    """Give the source, and where the console's log is."""
    machine = client.inspect(name)
    if machine.extra is None:
        raise PreconditionError("the daemon that runs does not tell where its logs are")
    if not source:
        source = "agent" if machine.state == _RUNNING else "serial"
    if source in _IN_GUEST and machine.state != _RUNNING:
        raise PreconditionError(
            f"the log of {source} is in machine {machine.name!r}, which is {machine.state}",
            hint=f"start it with: arcbox start {machine.name}",
        )
    return source, Path(machine.extra.console_log)


def _print(chunks: Iterable[bytes], after: After) -> None:
    from arcboxd.cli import loglines

    terminal = sys.stdout.isatty()
    for line in loglines.lines(chunks):
        if not after.passes(line):
            continue
        if terminal:
            # A guest may try to drive the user's terminal.
            text = line.decode(errors="replace").rstrip("\r\n").replace("\t", "    ")
            print(printable(text), flush=True)
        else:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()


class _Tail:
    """Reads a log in a guest."""

    def __init__(
        self, ctx: typer.Context, name: str, source: str, after: After, count: int
    ) -> None:
        self._ctx = ctx
        self._name = name
        self._source = source
        self._after = after
        self._count = count

    def read(self) -> Iterator[bytes]:
        """Give what there is."""
        status = yield from self._run()
        if status:
            raise PreconditionError(
                f"machine {self._name!r} has no log of {self._source}",
                hint=""
                if self._source == "agent"
                else "only a runtime of ours writes it; "
                f"begin that with: arcbox runtime ensure {self._name}",
            )

    def follow(self) -> Iterator[bytes]:
        """Give what there is and what comes, and go on with a machine that comes back."""
        told = False
        while True:
            try:
                yield from self._run("-F")
                told = False
            except ArcboxError as error:
                if error.kind not in _PASSING:
                    raise
                if not told:
                    session.tell(error.message, "waiting until the machine runs again")
                    told = True
            # What was there before is read again, and kept back.
            self._after.begin_again()
            self._count = 0
            time.sleep(_POLL_S)

    def _run(self, *options: str) -> Generator[bytes, None, int]:
        from arcboxd.domain.guest import ExecExit, ExecSpec

        lines = str(self._count) if self._count else "+1"
        argv = (_BUSYBOX, "tail", "-n", lines, *options, _IN_GUEST[self._source])
        status = 0
        with (
            session.connect(self._ctx) as client,
            client.exec(self._name, ExecSpec(argv)) as call,
        ):
            for output in call.outputs():
                if isinstance(output, ExecExit):
                    status = output.code
                    if output.reason:
                        raise PreconditionError(output.reason)
                elif output.stream == "stdout":
                    yield output.data
        return status
