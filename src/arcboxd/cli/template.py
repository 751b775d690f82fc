"""``arcbox template``: the images that were booted ahead, and what they take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from arcboxd.cli import params, session
from arcboxd.cli.output import duration, print_json, print_table
from arcboxd.cli.sizes import format_size
from arcboxd.cli.usage import CliUsageError

if TYPE_CHECKING:
    from arcboxd.client.views import Pruned

KEY_DIGITS = 12
"""Of a key, for people; JSON has them all."""
_HEADERS = (
    *("KEY", "IMAGE", "ARCH", "CPUS", "MEMORY", "DISK"),
    *("DOCKER", "SIZE", "MACHINES", "STAGED", "AGE", "CURRENT"),
)


def ls(ctx: typer.Context, as_json: params.Json = False) -> None:
    """List templates, oldest first.

    DOCKER tells whether its engine runs in it, SIZE is what one takes on disk, MACHINES counts
    those whose disks rest on it, STAGED the clones that wait to become machines. One that is not
    CURRENT fits nothing that is installed now.
    """
    with session.connect(ctx) as client:
        templates = client.list_templates()
    if as_json:
        print_json(templates)
        return
    now = datetime.now(UTC)
    rows = [
        (
            t.key[:KEY_DIGITS],
            f"{t.distro} {t.version}",
            t.arch,
            str(t.cpus),
            format_size(t.memory_bytes),
            format_size(t.disk_bytes),
            "yes" if t.runtime else "no",
            format_size(t.allocated_bytes),
            str(t.machines),
            str(t.staged),
            duration(int((now - t.created).total_seconds())) or "0 seconds",
            "yes" if t.current else "no",
        )
        for t in templates
    ]
    print_table(_HEADERS, rows)


def rm(
    ctx: typer.Context,
    keys: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY...",
            help="Keys, or unique beginnings of them.",
            autocompletion=session.complete_templates,
        ),
    ],
) -> None:
    """Remove templates."""
    for key in keys:
        if not re.fullmatch("[0-9a-f]+", key):
            raise CliUsageError(f"{key!r} is not a template's key", hint="arcbox template ls")
    with session.connect(ctx) as client:
        session.for_each(keys, client.remove_template)


def prune(ctx: typer.Context, as_json: params.Json = False) -> None:
    """Remove templates that are of no use any more.

    Those that are not current, and that no machine's disk rests on.
    """
    with session.connect(ctx) as client:
        pruned = client.prune_templates()
    print_pruned(pruned, pruned.keys, as_json=as_json)


def print_pruned(pruned: Pruned, names: Sequence[str], *, as_json: bool) -> None:
    """Print what was removed; ``names`` are keys, some of them after a kind and a dash."""
    if as_json:
        print_json(pruned)
    elif names:
        for name in names:
            kind, dash, key = name.rpartition("-")
            print(f"removed {kind}{dash}{key[:KEY_DIGITS]}")
        print(f"freed {format_size(pruned.freed_bytes)}")
    else:
        print("nothing to remove")
