"""``arcbox k8s``: Kubernetes in a machine, and the user's kubectl."""
# ruff: noqa: PLC0415 - see session

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

from arcboxd.cli import params, session
from arcboxd.cli.output import print_fields, print_json, print_table

if TYPE_CHECKING:
    from arcboxd.kubernetes.user_config import UserConfig

_HEADERS = ("SERVICE", "STATUS", "DETAIL")


def start(
    ctx: typer.Context,
    name: params.MachineOrDefault = "",
    quiet: params.Quiet = False,
    as_json: params.Json = False,
) -> None:
    """Start a machine's cluster, and print where it is reached; exit with 1 when it does not run.

    It may become ready a while later: arcbox k8s status tells.
    """
    from arcboxd.cli.progress import shown

    with session.connect(ctx) as client, shown(client, name, quiet=quiet):
        found = client.start_kubernetes(name)
    if as_json:
        print_json(found)
    elif found.running:
        print(found.endpoint)
    if not found.running or (found.detail and not found.api_ready and not as_json):
        hint = f"see how it goes on: arcbox k8s status {name}".rstrip()
        session.tell(found.detail or "the cluster does not run", hint)
    if not found.running:
        raise typer.Exit(1)


def stop(ctx: typer.Context, name: params.MachineOrDefault = "") -> None:
    """Stop a machine's cluster, and keep its data; exit with 1 when it did not stop."""
    with session.connect(ctx) as client:
        answer = client.stop_kubernetes(name)
    if not answer.stopped:
        session.tell(answer.detail or "the cluster did not stop")
        raise typer.Exit(1)


def delete(ctx: typer.Context, name: params.MachineOrDefault = "") -> None:
    """Remove a machine's cluster with all that is in it; the next start makes a new one."""
    with session.connect(ctx) as client:
        client.delete_kubernetes(name)


def status(
    ctx: typer.Context, name: params.MachineOrDefault = "", as_json: params.Json = False
) -> None:
    """Tell how a machine's cluster is."""
    with session.connect(ctx) as client:
        found = client.kubernetes_status(name)
    if as_json:
        print_json(found)
        return
    print_fields(
        [
            ("Cluster", "running" if found.running else "not running"),
            ("API", "ready" if found.api_ready else "not ready"),
            ("Endpoint", found.endpoint),
            ("Detail", found.detail),
        ]
    )
    if found.services:
        print()
        print_table(_HEADERS, [(s.name, s.status, s.detail or "-") for s in found.services])


def kubeconfig(ctx: typer.Context, name: params.MachineOrDefault = "") -> None:
    """Print a kubeconfig for a machine's cluster: arcbox k8s kubeconfig > FILE."""
    with session.connect(ctx) as client:
        print(client.kubeconfig(name).text, end="")


def enable(ctx: typer.Context, name: params.MachineOrDefault = "") -> None:
    """Add a machine's cluster to your kubeconfig and select it; print the context's name.

    It is `arcbox` for the default machine, and `arcbox-NAME` for another. The one that was selected
    before is remembered for `arcbox k8s disable`, and the file as it was is kept beside it.
    """
    from arcboxd.kubernetes.kubeconfig import credentials

    with session.connect(ctx) as client:
        found = client.kubeconfig(name)
    _user_config(ctx).enable(credentials(found.text), context=found.context, server=found.endpoint)
    print(found.context)


def disable(ctx: typer.Context, name: params.MachineOrDefault = "") -> None:
    """Take out what `enable` added and select what was selected before; print what is selected.

    A context that was selected since by somebody else stays so.
    """
    from arcboxd import settings
    from arcboxd.kubernetes.kubeconfig import CONTEXT, context_name

    # Not looked up: the machine may be gone, and no daemon is needed to put things back.
    context = CONTEXT
    if name:
        default = settings.load(session.paths(ctx).config).default_machine
        context = context_name(name, default)
    print(_user_config(ctx).disable(context).selected)


def _user_config(ctx: typer.Context) -> UserConfig:
    from arcboxd.kubernetes.user_config import UserConfig

    return UserConfig.of_user(os.environ, session.paths(ctx).kubernetes_contexts)
