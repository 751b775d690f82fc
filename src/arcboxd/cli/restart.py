"""``arcbox restart``: stop machines, and start them again."""

from __future__ import annotations

import typer

from arcboxd.cli import params, session
from arcboxd.cli.start import start_one
from arcboxd.cli.stop import Force


def restart(
    ctx: typer.Context,
    names: params.Machines,
    force: Force = False,
    wait: params.Wait = False,
    quiet: params.Quiet = False,
) -> None:
    """Stop machines and start them again; one that is stopped is just started."""
    with session.connect(ctx) as client:

        def do(name: str) -> None:
            client.stop(name, force=force)
            start_one(client, name, name, wait=wait, quiet=quiet)

        session.for_each(names, do)
