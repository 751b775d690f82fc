"""``arcbox start``: start machines."""
# ruff: noqa: PLC0415 - see session

from __future__ import annotations

import typer

from arcboxd.cli import params, session


def start(ctx: typer.Context, names: params.Machines, quiet: params.Quiet = False) -> None:
    """Start machines; returns once their agents answer.

    Suspended ones go on where they were, as with `arcbox resume`.
    """
    from arcboxd.cli.progress import shown

    with session.connect(ctx) as client:

        def do(name: str) -> None:
            with shown(client, name, quiet=quiet):
                client.start(name)

        session.for_each(names, do)
