"""``arcbox ls``: list machines."""

from __future__ import annotations

from typing import Annotated

import typer

from arcboxd.cli import params, session
from arcboxd.cli.output import age, print_json, print_table
from arcboxd.cli.sizes import format_size

_HEADERS = ("NAME", "STATE", "CPUS", "MEMORY", "DISK", "ADDRESS", "CREATED")


def ls(
    ctx: typer.Context,
    all_states: Annotated[bool, typer.Option("--all", "-a", help="Stopped ones too.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only their ids.")] = False,
    as_json: params.Json = False,
) -> None:
    """List the machines that are not stopped."""
    with session.connect(ctx) as client:
        machines = client.list(all_states=all_states)
    if as_json:
        print_json(machines)
    elif quiet:
        for m in machines:
            print(m.id)
    else:
        rows = [
            (
                m.name,
                m.state,
                str(m.cpus),
                format_size(m.memory_bytes),
                format_size(m.disk_bytes),
                m.address or "-",
                age(m.created),
            )
            for m in machines
        ]
        print_table(_HEADERS, rows)
