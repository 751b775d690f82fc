"""``arcbox exec``: run a command in a machine.

Always by `HostService.Exec`, with or without ``-i``: only that takes signals, and one path is
tested more than two.
"""
# ruff: noqa: PLC0415, PLR0917 - see session; a parameter an option

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from arcboxd.cli import params, session
from arcboxd.cli.usage import CliUsageError
from arcboxd.errors import ArcboxError

if TYPE_CHECKING:
    from arcboxd.cli.terminal import Inputs
    from arcboxd.client.client import Client
    from arcboxd.domain.guest import ExecExit, ExecSpec

OUR_ERROR_STATUS = 125
"""As docker has it: the command never ran, or we lost it. 126 and 127 are the guest's."""
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
_Handler = Callable[[int], None]


class _Abandoned(BaseException):
    """A signal that we do not pass on: give up, and kill the command."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def exec_(
    ctx: typer.Context,
    name: params.Machine,
    command: Annotated[list[str], typer.Argument(metavar="CMD [ARG]...")],
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Pass standard input on.")
    ] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Give it a terminal.")] = False,
    user: Annotated[str, typer.Option("--user", "-u", metavar="USER[:GROUP]")] = "",
    workdir: Annotated[str, typer.Option("--workdir", "-w", metavar="DIR")] = "",
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="K=V", help="Set a variable. Repeatable."),
    ] = None,
) -> None:
    """Run a command in a machine, without a shell; exit with its status.

    Our options come before NAME; everything after it is the command's. Without -t, SIGINT and
    SIGTERM are passed on; the second one ends the command. Our own errors have status 125.
    """
    from arcboxd.domain.guest import ExecSpec

    argv = command[1:] if command[:1] == ["--"] else command
    if not argv:
        raise CliUsageError("no command given", hint="arcbox exec NAME CMD [ARG]...")
    variables = dict(parse_variable(text) for text in env or ())
    if tty and interactive and not os.isatty(0):
        raise CliUsageError(
            "-t with -i needs a terminal, and standard input is none", hint="leave out -t"
        )
    if tty and "TERM" in os.environ:
        variables.setdefault("TERM", os.environ["TERM"])
    spec = ExecSpec(
        argv=tuple(argv),
        working_dir=workdir,
        user=user,
        env=variables,
        tty=tty,
        stdin=interactive,
    )
    try:
        with session.connect(ctx) as client:
            status = run(client, name, spec)
    except ArcboxError as error:
        if session.debugging():
            raise
        session.report(error)
        status = OUR_ERROR_STATUS
    raise typer.Exit(status)


def parse_variable(text: str) -> tuple[str, str]:
    """Read ``K=V``; a lone ``K`` passes on our own value, as docker does.

    Raises:
        CliUsageError: There is no name, or no value of our own.
    """
    name, equals, value = text.partition("=")
    if not name or (not equals and name not in os.environ):
        raise CliUsageError(f"-e {text!r} is not NAME=VALUE, nor a variable that is set here")
    return name, value if equals else os.environ[name]


def run(client: Client, ref: str, spec: ExecSpec) -> int:
    """Run it with our standard streams, terminal and signals; give the exit status."""
    from arcboxd.cli.terminal import Inputs, handling, raw_mode

    inputs = Inputs(0 if spec.stdin else None)
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(inputs.finish)
            # Before the terminal is touched, so that no signal finds it raw and us gone.
            stack.enter_context(handling(_handlers(inputs, tty=spec.tty)))
            if spec.tty and spec.stdin:
                stack.enter_context(raw_mode(0))
            ended = _relay(client, ref, spec, inputs)
    except _Abandoned as abandoned:
        return 128 + abandoned.number
    except BrokenPipeError:
        return session.BROKEN_PIPE_STATUS
    # Only now: in a raw terminal the next line would begin below the end of this one.
    if ended.reason:
        session.tell(ended.reason)
    return ended.code


def _relay(client: Client, ref: str, spec: ExecSpec, inputs: Inputs) -> ExecExit:
    from dataclasses import replace

    from arcboxd.cli.terminal import window_size, write_all
    from arcboxd.domain.guest import ExecExit

    rows, columns = window_size()
    ended = ExecExit(OUR_ERROR_STATUS)
    with client.exec(ref, replace(spec, rows=rows, columns=columns), inputs) as call:
        for output in call.outputs():
            if isinstance(output, ExecExit):
                ended = output
            else:
                write_all(1 if output.stream == "stdout" else 2, output.data)
    return ended


def _handlers(inputs: Inputs, *, tty: bool) -> dict[signal.Signals, _Handler]:
    from arcboxd.cli.terminal import window_size
    from arcboxd.domain.guest import ProcessSignal, TerminalSize

    forwarded: list[int] = []

    def forward(number: int) -> None:
        if forwarded:
            raise _Abandoned(number)
        forwarded.append(number)
        inputs.post(ProcessSignal(number))

    def abandon(number: int) -> None:
        raise _Abandoned(number)

    def resize(_number: int) -> None:
        inputs.post(TerminalSize(*window_size()))

    handlers: dict[signal.Signals, _Handler] = dict.fromkeys(_FORWARDED, forward)
    handlers[signal.SIGHUP] = abandon
    if tty:
        handlers[signal.SIGWINCH] = resize
    return handlers
