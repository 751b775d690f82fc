"""``arcbox rm``: remove machines."""

from __future__ import annotations

from typing import Annotated

import typer

from arcboxd.cli import params, session


def rm(
    ctx: typer.Context,
    names: params.Machines,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Also running or suspended ones.")
    ] = False,
    volumes: Annotated[bool, typer.Option("--volumes", "-v", help="Their data disks too.")] = False,
) -> None:
    """Remove machines with their disks."""
    with session.connect(ctx) as client:
        session.for_each(names, lambda name: client.remove(name, force=force, volumes=volumes))
