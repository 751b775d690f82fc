"""``arcbox set``: change what a stopped machine is made of."""

from __future__ import annotations

import typer

from arcboxd.cli import params, session, shape
from arcboxd.cli.usage import CliUsageError


def set_machine(
    ctx: typer.Context,
    name: params.Machine,
    cpus: shape.Cpus = 0,
    memory: shape.Memory = "",
    disk: shape.Disk = "",
) -> None:
    """Give a stopped machine other processors, other memory or a larger disk.

    The guest has them from its next start on. A disk only grows.
    """
    fields = shape.checked(cpus, memory, disk, "", "", "")
    cpus, memory_bytes, disk_bytes = (
        fields["cpus"],
        fields["memory_bytes"],
        fields["disk_bytes"],
    )
    if not (cpus or memory_bytes or disk_bytes):
        raise CliUsageError("nothing to change", hint="give --cpus, --memory or --disk")
    with session.connect(ctx) as client:
        client.set_machine(name, cpus=cpus, memory_bytes=memory_bytes, disk_bytes=disk_bytes)
    print(name)
