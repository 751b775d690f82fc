"""``arcbox docker``: the docker client and our machines."""
# ruff: noqa: PLC0415 - see session

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from arcboxd.cli import params, session
from arcboxd.cli.output import print_fields, print_json

if TYPE_CHECKING:
    from arcboxd.client.client import Client
    from arcboxd.docker.contexts import DockerContexts
    from arcboxd.docker.switch import Switch

_CONTEXT = "arcbox"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a machine's Docker is for the host, and what we call it."""

    context: str
    socket: Path
    description: str

    @property
    def endpoint(self) -> str:
        return f"unix://{self.socket}"


def env(ctx: typer.Context, name: params.MachineOrDefault = "") -> None:
    """Print what to export for docker to use a machine: eval "$(arcbox docker env)"."""
    with session.connect(ctx) as client:
        place = _place(ctx, client, name)
    print(f"export DOCKER_HOST={shlex.quote(place.endpoint)}")


def enable(ctx: typer.Context, name: params.MachineOrDefault = "") -> None:
    """Make a docker context for a machine and select it; print its name.

    It is `arcbox` for the default machine, and `arcbox-NAME` for another. The one that was selected
    before is remembered for `arcbox docker disable`.
    """
    with session.connect(ctx) as client:
        place = _place(ctx, client, name)
    switched = _switch(ctx).enable(place.context, place.endpoint, place.description)
    print(switched.selected)
    if variable := next((v for v in ("DOCKER_HOST", "DOCKER_CONTEXT") if os.environ.get(v)), None):
        session.tell(f"{variable} is set here, and docker heeds it first", f"unset {variable}")


def disable(ctx: typer.Context, name: params.MachineOrDefault = "") -> None:
    """Remove what `enable` made and select what was selected before it; print what is selected.

    A context that was selected since by somebody else stays so.
    """
    # Not looked up: the machine may be gone, and no daemon is needed to put things back.
    context = f"{_CONTEXT}-{name}" if name else _CONTEXT
    print(_switch(ctx).disable(context).selected)


def status(
    ctx: typer.Context, name: params.MachineOrDefault = "", as_json: params.Json = False
) -> None:
    """Tell where a machine's Docker is, how it is, and what the docker client uses."""
    from arcboxd.errors import ArcboxError, MachineNotFoundError

    with session.connect(ctx) as client:
        place = _place(ctx, client, name)
        try:
            runtime = client.runtime_status(name)
            ready, detail = runtime.docker_ready, runtime.detail
        except MachineNotFoundError:
            ready, detail = False, "the default machine is made by the first connection"
        except ArcboxError as error:
            ready, detail = False, error.message
    contexts = _contexts()
    try:
        selected, trouble = contexts.selected(), ""
    except ArcboxError as error:
        selected, trouble = "", error.message
    host = os.environ.get("DOCKER_HOST", "")
    made = contexts.is_ours(place.context)
    if as_json:
        print_json(
            {
                "socket": str(place.socket),
                "ready": ready,
                "detail": detail,
                "context": place.context if made else None,
                "selected_context": selected,
                "docker_host": host or None,
            }
        )
        return
    used = host == place.endpoint or (not host and contexts.endpoint(selected) == place.endpoint)
    print_fields(
        [
            ("Socket", str(place.socket)),
            ("Docker", "ready" if ready else "not ready"),
            ("Detail", detail),
            ("Context", place.context if made else "none; arcbox docker enable makes one"),
            ("Selected", selected or trouble),
            ("DOCKER_HOST", host),
            ("docker uses it", "yes" if used else "no"),
        ]
    )


def _place(ctx: typer.Context, client: Client, name: str) -> _Place:
    """Find a machine's Docker socket.

    Raises:
        MachineNotFoundError: There is no such machine.
        UnsupportedError: The daemon is older than this command.
    """
    from arcboxd.errors import UnsupportedError

    paths = session.paths(ctx)
    if not name:
        return _Place(_CONTEXT, paths.docker_socket, "the default machine")
    machine = client.inspect(name)
    if machine.extra is None or not machine.extra.docker_socket:
        raise UnsupportedError(
            "the daemon that runs is of a version without Docker sockets",
            hint="begin it anew: arcbox daemon stop, then arcbox daemon start",
        )
    socket = Path(machine.extra.docker_socket)
    return _Place(f"{_CONTEXT}-{machine.name}", socket, f"machine {machine.name}")


def _contexts() -> DockerContexts:
    from arcboxd.docker.contexts import DockerContexts

    return DockerContexts.of_user(os.environ)


def _switch(ctx: typer.Context) -> Switch:
    from arcboxd.docker.switch import Switch

    return Switch(_contexts(), session.paths(ctx).docker_contexts)
