"""``arcbox k8s``: Kubernetes in a machine, and the user's kubectl."""
# ruff: noqa: PLC0415 - see session

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Annotated

import typer

from arcboxd.cli import params, session
from arcboxd.cli.output import print_fields, print_json, print_table
from arcboxd.cli.usage import CliUsageError

if TYPE_CHECKING:
    from arcboxd.kubernetes.user_config import UserConfig

_READY_S = 900.0
_BUSYBOX = "/run/arcbox/bundle/bin/busybox"
_LOAD = """
if [ -S /run/arcbox/cluster/containerd.sock ]; then
    set -- /run/arcbox/runtime/bin/ctr --address /run/arcbox/cluster/containerd.sock
elif [ -S /run/k3s/containerd/containerd.sock ]; then
    set -- /run/arcbox/kubernetes/bin/k3s ctr
else
    echo "the machine has no cluster that runs; start it with: arcbox k8s start" >&2
    exit 1
fi
exec "$@" --namespace k8s.io images import -
"""
_HEADERS = ("SERVICE", "STATUS", "DETAIL")


def start(
    ctx: typer.Context,
    name: params.MachineOrDefault = "",
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not wait until the API server is ready.")
    ] = False,
    quiet: params.Quiet = False,
    as_json: params.Json = False,
) -> None:
    """Start a machine's cluster, and the machine; print where it is reached.

    The machine has it whenever it runs, until it is stopped. Exit with 1 when it does not run, or
    is not ready after 15 minutes; it may still become so: arcbox k8s status tells.
    """
    from arcboxd.cli.progress import shown

    with session.connect(ctx) as client, shown(client, name, quiet=quiet):
        found = client.start_kubernetes(name)
        deadline = time.monotonic() + _READY_S
        while not no_wait and not found.api_ready and time.monotonic() < deadline:
            # Each call waits a while in the machine.
            found = client.start_kubernetes(name)
    if as_json:
        print_json(found)
    elif found.running:
        print(found.endpoint)
    if not found.running or (found.detail and not found.api_ready and not as_json):
        hint = f"see how it goes on: arcbox k8s status {name}".rstrip()
        session.tell(found.detail or "the cluster does not run", hint)
    if not found.running or not (found.api_ready or no_wait):
        raise typer.Exit(1)


def load(ctx: typer.Context, name: params.MachineOrDefault = "") -> None:
    """Give a machine's cluster images from an archive at standard input.

    For example: docker save web:1 | arcbox k8s load dev
    """
    from arcboxd.cli import exec as exec_verb
    from arcboxd.domain.guest import ExecSpec

    if os.isatty(0):
        raise CliUsageError(
            "an archive is read from standard input, which is a terminal",
            hint="docker save IMAGE | arcbox k8s load",
        )
    spec = ExecSpec(argv=(_BUSYBOX, "sh", "-c", _LOAD), stdin=True)
    with session.connect(ctx) as client:
        status = exec_verb.run(client, name or _default_machine(ctx), spec)
    raise typer.Exit(status)


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
    from arcboxd.kubernetes.kubeconfig import CONTEXT, context_name

    # Not looked up: the machine may be gone, and no daemon is needed to put things back.
    context = CONTEXT
    if name:
        context = context_name(name, _default_machine(ctx))
    print(_user_config(ctx).disable(context).selected)


def _default_machine(ctx: typer.Context) -> str:
    from arcboxd import settings

    return settings.load(session.paths(ctx).config).default_machine


def _user_config(ctx: typer.Context) -> UserConfig:
    from arcboxd.kubernetes.user_config import UserConfig

    return UserConfig.of_user(os.environ, session.paths(ctx).kubernetes_contexts)
