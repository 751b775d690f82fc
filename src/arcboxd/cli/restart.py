"""``arcbox restart``: stop machines, and start them again."""
# ruff: noqa: PLC0415 - see session

from __future__ import annotations

import typer

from arcboxd.cli import params, session
from arcboxd.cli.start import warn_of_failed
from arcboxd.cli.stop import Force


def restart(
    ctx: typer.Context,
    names: params.Machines,
    force: Force = False,
    wait: params.Wait = False,
    quiet: params.Quiet = False,
) -> None:
    """Stop machines and start them again; one that is stopped is just started."""
    from arcboxd.cli.progress import shown

    with session.connect(ctx) as client:

        def do(name: str) -> None:
            client.stop(name, force=force)
            with shown(client, name, quiet=quiet):
                client.start(name)
                failed = client.wait_booted(name) if wait else ()
            warn_of_failed(name, failed)

        session.for_each(names, do)
