"""The parameters that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

from arcboxd.cli.session import complete_machines

Machine = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="The machine's name, its id, or a unique prefix of the id.",
        autocompletion=complete_machines,
    ),
]
MachineOrDefault = Annotated[
    str,
    typer.Argument(
        metavar="[NAME]",
        help="The machine; the default one if none is named.",
        autocompletion=complete_machines,
    ),
]
Machines = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME...",
        help="Machines, each by its name, its id, or a unique prefix of the id.",
        autocompletion=complete_machines,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Wait = Annotated[
    bool, typer.Option("--wait", help="Return only once init has started all it starts at boot.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
