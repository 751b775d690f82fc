"""``arcbox daemon``: the process behind all the others."""
# ruff: noqa: PLC0415 - see session

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from datetime import UTC, datetime

import typer

from arcboxd.cli import params, session
from arcboxd.cli.output import duration, print_fields, print_json

NOT_RUNNING_STATUS = 3
"""As `systemctl status` and the LSB have it for a service that does not run."""


def start(ctx: typer.Context) -> None:
    """Start the daemon, if it does not run; every other command does so by itself."""
    with session.connect(ctx) as client:
        print(f"daemon runs (pid {client.daemon_info().pid})")


def stop(ctx: typer.Context) -> None:
    """Stop the daemon; machines go on running, and the next daemon takes them over."""
    from arcboxd.client.daemon import stop_daemon

    if stop_daemon(session.paths(ctx)):
        print("daemon stopped; machines go on running")
    else:
        print("no daemon ran")


def status(ctx: typer.Context, as_json: params.Json = False) -> None:
    """Tell whether the daemon runs; exit with 3 when it does not."""
    from arcboxd.client.daemon import connect
    from arcboxd.errors import DaemonUnreachableError

    paths = session.paths(ctx)
    try:
        with connect(paths) as client:
            info = client.daemon_info()
    except DaemonUnreachableError:
        if as_json:
            print_json({"running": False, "home": str(paths.home)})
        else:
            print(f"no daemon runs for {paths.home}")
        raise typer.Exit(NOT_RUNNING_STATUS) from None
    uptime_s = max(0, int((datetime.now(UTC) - info.started).total_seconds()))
    if as_json:
        fields = asdict(info)
        fields["running_machines"] = fields.pop("running")
        print_json({"running": True, "uptime_s": uptime_s, **fields})
        return
    print_fields(
        [
            ("Daemon", f"runs, version {info.version}"),
            ("Pid", str(info.pid)),
            ("Up", duration(uptime_s) or "0 seconds"),
            ("Home", str(info.home)),
            ("Machines", f"{info.machines}, of which {info.running} run"),
            ("Accelerator", f"{info.accelerator} ({info.accelerator_reason})"),
        ]
    )


def run(ctx: typer.Context) -> None:
    """Serve in the foreground, for a service manager."""
    sys.stdout.flush()
    environ = {**os.environ, "ARCBOX_HOME": str(session.paths(ctx).home)}
    # -P: what lies in the current directory is not a module of ours.
    argv = [sys.executable, "-P", "-m", "arcboxd.daemon"]
    os.execve(sys.executable, argv, environ)  # noqa: S606 - an argument vector, no shell
