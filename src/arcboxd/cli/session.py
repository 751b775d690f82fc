"""What every verb needs: where the state is, a connection, and how an error is told."""
# ruff: noqa: PLC0415 - the client imports grpc, which `--version` and completion do without

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from arcboxd.errors import ArcboxError
from arcboxd.paths import MachinePaths, Paths

if TYPE_CHECKING:
    from arcboxd.client.client import Client

BROKEN_PIPE_STATUS = 128 + 13
"""What a shell shows for a program that SIGPIPE ended."""


_NUMBERS = {int: "whole number", float: "number"}


class _Verbatim:
    """Takes what was typed as it is, and converts to a number where that is asked for.

    Typer (0.29) converts with pydantic, whose import alone takes 250 ms, more than all the rest of
    `arcbox ls`. Our parameters are text, numbers and flags: typer looks here first, and a version
    of it that does not just converts by its own means.
    """

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:  # noqa: ANN401 - typer's own
        if param.multiple or param.nargs == -1:
            return list(value or ())
        number = param.type_descriptor.annotation
        if value is not None and number in _NUMBERS:
            try:
                return number(value)
            except ValueError:
                raise typer.BadParameter(
                    f"{value!r} is not a {_NUMBERS[number]}", ctx=ctx, param=param
                ) from None
        return value


class Verb(TyperCommand):
    """A command that starts quickly."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 - typer's own
        """Give the parameters, as they are about to be parsed."""
        return _spared(super().get_params(ctx))

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer's own
        """Run it; when nobody reads its output any more, end as quietly as SIGPIPE would."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # What is left in the buffer must go somewhere, or Python complains of it at its exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise typer.Exit(BROKEN_PIPE_STATUS) from None
        return result


class Group(TyperGroup):
    """A group of commands that starts quickly."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 - typer's own
        """Give the parameters, as they are about to be parsed."""
        return _spared(super().get_params(ctx))


def _spared(params: list[Any]) -> list[Any]:
    # As late as this, for typer adds --help and the options for completion when it parses.
    for param in params:
        if hasattr(param, "_runtime_param"):
            param._runtime_param = _Verbatim()  # noqa: SLF001 - see _Verbatim
    return params


def paths(ctx: typer.Context) -> Paths:
    """Tell where the state is: ``--home``, else ``$ARCBOX_HOME``, else ``~/.arcbox``."""
    home = ctx.find_root().obj
    return Paths.of(Path(home) if home else None)


def connect(ctx: typer.Context) -> Client:
    """Connect to the daemon, starting it if need be."""
    from arcboxd.client.daemon import ensure_daemon

    return ensure_daemon(paths(ctx))


def complete_machines(ctx: typer.Context, incomplete: str) -> list[str]:
    """Offer machine names from the records on disk: no daemon, no grpc, nothing to wait for."""
    return sorted(name for name, _ in _machines(ctx) if name and name.startswith(incomplete))


def complete_snapshots(ctx: typer.Context, incomplete: str) -> list[str]:
    """Offer the snapshots of the machine that was typed before, likewise."""
    ref = ctx.params.get("name")
    found = [m for name, m in _machines(ctx) if ref in {name, m.directory.name}]
    return [name for m in found for name in _entries(m.snapshots, incomplete)]


def complete_templates(ctx: typer.Context, incomplete: str) -> list[str]:
    """Offer templates' keys, likewise."""
    return _entries(paths(ctx).templates, incomplete)


def _machines(ctx: typer.Context) -> Iterator[tuple[str, MachinePaths]]:
    import json

    with contextlib.suppress(OSError):
        for record in sorted(paths(ctx).machines.glob("*/machine.json"))[:1000]:
            with contextlib.suppress(OSError, ValueError, KeyError):
                document = json.loads(record.read_bytes())
                name = str(document["name"]) if isinstance(document, dict) else ""
                yield name, MachinePaths(record.parent)


def _entries(directory: Path, incomplete: str) -> list[str]:
    try:
        names = [entry.name for entry in directory.iterdir()]
    except OSError:
        return []
    # One that is being written has a dot in its name.
    return sorted(n for n in names if n.startswith(incomplete) and "." not in n)


def report(error: ArcboxError) -> None:
    """Tell an error on stderr: the message, and what to do next."""
    tell(error.message, error.hint)


def tell(message: str, hint: str = "") -> None:
    """Say something on stderr."""
    # In one write: other processes write to the same terminal.
    text = f"arcbox: {message}\n" + (f"  hint: {hint}\n" if hint else "")
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody reads it: nobody to tell
        return


def debugging() -> bool:
    """Tell whether the user wants tracebacks."""
    return bool(os.environ.get("ARCBOX_DEBUG"))


def for_each(names: Sequence[str], do: Callable[[str], None]) -> None:
    """Do it for every name, print those it was done for, and fail at the end if one failed.

    Raises:
        typer.Exit: With status 1, when one failed; each failure was told.
    """
    failed = False
    for name in names:
        try:
            do(name)
        except ArcboxError as error:
            if debugging():
                raise
            report(error)
            failed = True
        else:
            print(name, flush=True)
    if failed:
        raise typer.Exit(1)
