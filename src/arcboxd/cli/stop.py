"""``arcbox stop``: stop machines."""

from __future__ import annotations

from typing import Annotated

import typer

from arcboxd.cli import params, session

Force = Annotated[bool, typer.Option("--force", "-f", help="At once, without asking the guest.")]


def stop(ctx: typer.Context, names: params.Machines, force: Force = False) -> None:
    """Stop machines, in an orderly way if the guest agrees.

    A suspended one is resumed for that; with --force, its saved memory is lost.
    """
    with session.connect(ctx) as client:
        session.for_each(names, lambda name: client.stop(name, force=force))
