"""``arcbox ssh``: log in with the real ssh."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from arcboxd.cli import params, session
from arcboxd.errors import MissingToolError
from arcboxd.paths import MachinePaths

if TYPE_CHECKING:
    from arcboxd.client.views import SshInfo


def ssh(
    ctx: typer.Context,
    name: params.Machine,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- CMD...]", help="What to run instead of a login shell."),
    ] = None,
) -> None:
    """Log in to a machine by ssh, or run a command there through its login shell."""
    with session.connect(ctx) as client:
        info = client.ssh_info(name)
    argv = ssh_argv(info, command or [])
    sys.stdout.flush()
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - an argument vector, no shell
    except FileNotFoundError as error:
        raise MissingToolError(
            "the program 'ssh' is not installed",
            hint="install it with: apt-get install openssh-client",
        ) from error


def ssh_argv(info: SshInfo, command: list[str]) -> list[str]:
    """Build ssh's arguments: the daemon's own command, or one from the fields."""
    argv = shlex.split(info.command)
    if argv[:1] != ["ssh"]:
        from pathlib import Path  # noqa: PLC0415 - seldom

        hosts = MachinePaths(Path(info.identity_file).parent).ssh_known_hosts
        argv = ["ssh", "-i", info.identity_file, "-p", str(info.port), "-o", "IdentitiesOnly=yes"]
        argv += ["-o", f"UserKnownHostsFile={hosts}", "-o", "StrictHostKeyChecking=yes"]
        argv += [f"{info.user}@{info.host}"]
    if command and command[0] == "--":
        command = command[1:]
    # ssh looks for options after the host as well; `--` makes it stop.
    return [*argv, "--", *command] if command else argv
