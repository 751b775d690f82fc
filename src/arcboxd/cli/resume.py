"""``arcbox resume``: suspended machines go on."""
# ruff: noqa: PLC0415 - see session

from __future__ import annotations

import typer

from arcboxd.cli import params, session


def resume(ctx: typer.Context, names: params.Machines, quiet: params.Quiet = False) -> None:
    """Let suspended machines go on where they were.

    Returns once their agents answer. Machines that run already are left alone.
    """
    from arcboxd.cli.progress import shown

    with session.connect(ctx) as client:

        def do(name: str) -> None:
            with shown(client, name, quiet=quiet):
                client.resume(name)

        session.for_each(names, do)
