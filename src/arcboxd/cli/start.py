"""``arcbox start``: start machines."""
# ruff: noqa: PLC0415 - see session

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from arcboxd.cli import params, session
from arcboxd.cli.output import printable


def start(
    ctx: typer.Context,
    names: params.Machines,
    wait: params.Wait = False,
    quiet: params.Quiet = False,
) -> None:
    """Start machines; returns once their agents answer.

    Commands run from then on; what needs services of the machine, such as systemctl, wants
    `--wait`. Suspended machines go on where they were, as with `arcbox resume`.
    """
    from arcboxd.cli.progress import shown

    with session.connect(ctx) as client:

        def do(name: str) -> None:
            with shown(client, name, quiet=quiet):
                client.start(name)
                failed = client.wait_booted(name) if wait else ()
            warn_of_failed(name, failed)

        session.for_each(names, do)


def warn_of_failed(name: str, failed: Sequence[str]) -> None:
    """Say on stderr which services of a machine that has booted are not there."""
    if failed:
        services = printable(", ".join(failed))
        print(f"arcbox: in {name}, these services failed: {services}", file=sys.stderr)
