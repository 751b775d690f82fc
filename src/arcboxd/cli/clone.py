"""``arcbox clone``: a new machine with a copy of another's disks."""
# ruff: noqa: PLC0415 - see session

from __future__ import annotations

from typing import Annotated

import typer

from arcboxd.cli import params, session
from arcboxd.cli.output import print_json


def clone(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="The machine to copy, running or not.",
            autocompletion=session.complete_machines,
        ),
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the copy: a-z, 0-9 and '-'.")],
    quiet: params.Quiet = False,
    as_json: params.Json = False,
) -> None:
    """Copy a machine into a new one, and print its id.

    The copy is stopped, and gets an identity of its own when it starts. Of a running machine it is
    as after a power cut at that moment.
    """
    from arcboxd.cli.progress import shown

    with session.connect(ctx) as client, shown(client, name, quiet=quiet):
        machine_id = client.clone(source, name)
    if as_json:
        print_json({"id": machine_id, "name": name})
    else:
        print(machine_id)
