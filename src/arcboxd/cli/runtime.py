"""``arcbox runtime``: containerd and Docker in a machine."""
# ruff: noqa: PLC0415 - see session

from __future__ import annotations

import typer

from arcboxd.cli import params, session
from arcboxd.cli.output import print_fields, print_json, print_table

_HEADERS = ("SERVICE", "STATUS", "DETAIL")


def ensure(
    ctx: typer.Context,
    name: params.MachineOrDefault = "",
    quiet: params.Quiet = False,
    as_json: params.Json = False,
) -> None:
    """Have a machine's Docker ready, starting what is needed; exit with 1 when it is not.

    The machine is started if it does not run, and the default machine is made if there is none.
    """
    from arcboxd.cli.progress import shown

    with session.connect(ctx) as client, shown(client, name, quiet=quiet):
        answer = client.ensure_runtime(name)
    if as_json:
        print_json(answer)
    elif answer.ready:
        print(answer.status)
    else:
        session.tell(answer.message or "the runtime is not ready", _hint(name))
    if not answer.ready:
        raise typer.Exit(1)


def status(
    ctx: typer.Context, name: params.MachineOrDefault = "", as_json: params.Json = False
) -> None:
    """Tell how a machine's containerd and Docker are."""
    with session.connect(ctx) as client:
        found = client.runtime_status(name)
    if as_json:
        print_json(found)
        return
    print_fields(
        [
            ("Docker", "ready" if found.docker_ready else "not ready"),
            ("containerd", "ready" if found.containerd_ready else "not ready"),
            ("Detail", found.detail),
        ]
    )
    if found.services:
        print()
        print_table(_HEADERS, [(s.name, s.status, s.detail or "-") for s in found.services])


def _hint(name: str) -> str:
    return f"see more with: arcbox logs {name or 'NAME'} --source dockerd"
