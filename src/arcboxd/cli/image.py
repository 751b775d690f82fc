"""``arcbox image``: what machines are made of."""
# ruff: noqa: PLC0415, PLR0917 - see session; a parameter an option

from __future__ import annotations

import typer

from arcboxd.cli import params, session, shape
from arcboxd.cli.output import print_json
from arcboxd.cli.sizes import format_size
from arcboxd.cli.template import KEY_DIGITS


def prepare(
    ctx: typer.Context,
    cpus: shape.Cpus = 0,
    memory: shape.Memory = "",
    disk: shape.Disk = "",
    distro: shape.Distro = "",
    version: shape.Version = "",
    arch: shape.Arch = "",
    quiet: params.Quiet = False,
    as_json: params.Json = False,
) -> None:
    """Boot an image into a template; print its key and size.

    New machines with these processors and memory, and at least this disk, then start without
    booting. Without options it is for what `arcbox create NAME` makes. The size is on disk.
    """
    fields = shape.checked(cpus, memory, disk, distro, version, arch)

    from arcboxd.cli.progress import shown
    from arcboxd.client.client import TEMPLATE_SUBJECT
    from arcboxd.client.views import NewTemplate

    with session.connect(ctx) as client, shown(client, TEMPLATE_SUBJECT, quiet=quiet):
        made = client.prepare_template(NewTemplate(**fields))
    if as_json:
        print_json(made)
    else:
        print(f"{made.key[:KEY_DIGITS]} {format_size(made.allocated_bytes)}")
