"""The shape of a machine: the options that ``create`` and ``image prepare`` share."""
# ruff: noqa: PLR0917 - a parameter an option

from __future__ import annotations

from typing import Annotated, TypedDict

import typer

from arcboxd.cli.sizes import parse_size
from arcboxd.cli.usage import CliUsageError

Cpus = Annotated[int, typer.Option(help="Virtual processors.", show_default=False)]
Memory = Annotated[str, typer.Option(metavar="SIZE", help="Memory, such as 2G.")]
Disk = Annotated[str, typer.Option(metavar="SIZE", help="Root disk, such as 20G.")]
Distro = Annotated[
    str,
    typer.Option(
        help="Distribution such as debian or alpine, an imported image's name, or oci:REFERENCE."
    ),
]
Version = Annotated[str, typer.Option(help="Its version, such as 12; by default the newest.")]
Arch = Annotated[str, typer.Option(help="Architecture; the host's by default.")]


class Shape(TypedDict):
    """Fields of `NewMachine` and `views.NewTemplate`; 0 and "" are the daemon's choice."""

    cpus: int
    memory_bytes: int
    disk_bytes: int
    distro: str
    version: str
    arch: str


def checked(cpus: int, memory: str, disk: str, distro: str, version: str, arch: str) -> Shape:
    """Read the options' values.

    Raises:
        CliUsageError: One of them makes no sense.
    """
    if cpus < 0:
        raise CliUsageError("--cpus must be at least 1")
    return {
        "cpus": cpus,
        "memory_bytes": parse_size(memory, "--memory") if memory else 0,
        "disk_bytes": parse_size(disk, "--disk") if disk else 0,
        "distro": distro,
        "version": version,
        "arch": arch,
    }
