"""``arcbox suspend``: machines go to disk as they are."""
# ruff: noqa: PLC0415 - see session

from __future__ import annotations

import typer

from arcboxd.cli import params, session


def suspend(ctx: typer.Context, names: params.Machines, quiet: params.Quiet = False) -> None:
    """Save machines' memory to disk, and end their processes.

    With `arcbox resume` they go on where they were, also after the host was restarted. Machines
    that are suspended already are left alone.
    """
    from arcboxd.cli.progress import shown

    with session.connect(ctx) as client:

        def do(name: str) -> None:
            with shown(client, name, quiet=quiet):
                client.suspend(name)

        session.for_each(names, do)
