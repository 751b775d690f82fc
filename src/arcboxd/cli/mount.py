"""``arcbox mount``: directories of the host in a machine."""
# ruff: noqa: PLC0415 - see session

from __future__ import annotations

from typing import Annotated

import typer

from arcboxd.cli import params, session
from arcboxd.cli.create import parse_mount
from arcboxd.cli.output import print_json, print_table

_HEADERS = ("HOST", "GUEST", "MODE", "STATE")


def add(
    ctx: typer.Context,
    name: params.Machine,
    mount: Annotated[str, typer.Argument(metavar="HOST:GUEST[:ro]")],
    as_json: params.Json = False,
) -> None:
    """Mount a directory of the host in a machine, at once if it runs; print where.

    It is mounted again at each start. :ro is enforced on the host.
    """
    wanted = parse_mount(mount)
    from arcboxd.domain.machine import DirectoryMount

    with session.connect(ctx) as client:
        made = client.add_mount(name, DirectoryMount(*wanted))
    if as_json:
        print_json(made)
    else:
        print(made.guest_path)


def rm(
    ctx: typer.Context,
    name: params.Machine,
    guest: Annotated[list[str], typer.Argument(metavar="GUEST...", help="Where it is mounted.")],
) -> None:
    """Take mounts from a machine, at once if it runs, and print each.

    One that a process in the machine uses stays. Nothing in the directory changes.
    """
    with session.connect(ctx) as client:
        session.for_each(guest, lambda path: client.remove_mount(name, path))


def ls(ctx: typer.Context, name: params.Machine, as_json: params.Json = False) -> None:
    """List a machine's mounts, and whether each is there now."""
    with session.connect(ctx) as client:
        mounts = client.list_mounts(name)
    if as_json:
        print_json(mounts)
        return
    rows = [
        (
            m.host_path,
            m.guest_path,
            "ro" if m.readonly else "rw",
            (f"{m.state} ({m.filesystem})" if m.filesystem else m.state)
            + (f": {m.detail}" if m.detail else ""),
        )
        for m in mounts
    ]
    print_table(_HEADERS, rows)
