"""``arcbox start``: start machines."""
# ruff: noqa: PLC0415 - see session

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from arcboxd.cli import params, session
from arcboxd.cli.output import printable

if TYPE_CHECKING:
    from arcboxd.client.client import Client


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
    with session.connect(ctx) as client:
        session.for_each(names, lambda name: start_one(client, name, name, wait=wait, quiet=quiet))


def start_one(client: Client, ref: str, name: str, *, wait: bool, quiet: bool) -> None:
    """Start a machine and show how that goes.

    Args:
        client: A connection to the daemon.
        ref: The machine.
        name: What it is called to the user.
        wait: Wait until it has booted, and say on stderr which services are not there.
        quiet: Show no progress.
    """
    from arcboxd.cli.progress import shown

    with shown(client, name, quiet=quiet):
        client.start(ref)
        failed = client.wait_booted(ref) if wait else ()
    if failed:
        services = printable(", ".join(failed))
        print(f"arcbox: in {name}, these services failed: {services}", file=sys.stderr)
