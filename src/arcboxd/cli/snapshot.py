"""``arcbox snapshot``: machines as they once were."""
# ruff: noqa: PLC0415 - see session

from __future__ import annotations

from typing import Annotated

import typer

from arcboxd.cli import params, session
from arcboxd.cli.output import age, print_json, print_table
from arcboxd.cli.sizes import format_size

_HEADERS = ("SNAPSHOT", "CREATED", "MEMORY")


def create(
    ctx: typer.Context,
    name: params.Machine,
    snapshot: Annotated[
        str, typer.Argument(metavar="SNAPSHOT", help="Its name; one made of the time if none.")
    ] = "",
    quiet: params.Quiet = False,
    as_json: params.Json = False,
) -> None:
    """Keep a machine as it is now, and print the snapshot's name.

    Its disks, and its memory unless it is stopped.
    """
    from arcboxd.cli.progress import shown

    with session.connect(ctx) as client, shown(client, name, quiet=quiet):
        made = client.create_snapshot(name, snapshot)
    if as_json:
        print_json(made)
    else:
        print(made.name)


def ls(ctx: typer.Context, name: params.Machine, as_json: params.Json = False) -> None:
    """List a machine's snapshots, oldest first.

    MEMORY is what their memory takes on the host's disk; of a stopped machine there is none.
    """
    with session.connect(ctx) as client:
        snapshots = client.list_snapshots(name)
    if as_json:
        print_json(snapshots)
        return
    rows = [
        (s.name, age(s.created), format_size(s.saved_bytes) if s.memory else "-") for s in snapshots
    ]
    print_table(_HEADERS, rows)


def restore(
    ctx: typer.Context,
    name: params.Machine,
    snapshot: Annotated[
        str,
        typer.Argument(
            metavar="SNAPSHOT",
            help="The snapshot's name.",
            autocompletion=session.complete_snapshots,
        ),
    ],
    force: Annotated[
        bool, typer.Option("--force", "-f", help="End a running machine first, losing its work.")
    ] = False,
    quiet: params.Quiet = False,
) -> None:
    """Bring a machine back to a snapshot.

    It is then suspended if the snapshot has memory, else stopped. What its disks hold now is lost,
    unless another snapshot has it.
    """
    from arcboxd.cli.progress import shown

    with session.connect(ctx) as client, shown(client, name, quiet=quiet):
        client.restore_snapshot(name, snapshot, force=force)
    print(snapshot)


def rm(
    ctx: typer.Context,
    name: params.Machine,
    snapshots: Annotated[
        list[str],
        typer.Argument(
            metavar="SNAPSHOT...",
            help="The snapshots' names.",
            autocompletion=session.complete_snapshots,
        ),
    ],
) -> None:
    """Remove snapshots of a machine, which stays as it is."""
    with session.connect(ctx) as client:
        session.for_each(snapshots, lambda snapshot: client.remove_snapshot(name, snapshot))
