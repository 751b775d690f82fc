"""The command ``arcbox``: which verbs there are, and how a command ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from arcboxd.cli import (
    daemon,
    docker,
    doctor,
    image,
    k8s,
    mount,
    port,
    runtime,
    session,
    snapshot,
    template,
)
from arcboxd.cli.clone import clone
from arcboxd.cli.cp import cp
from arcboxd.cli.create import create
from arcboxd.cli.exec import exec_
from arcboxd.cli.info import info
from arcboxd.cli.inspect import inspect
from arcboxd.cli.logs import logs
from arcboxd.cli.ls import ls
from arcboxd.cli.ping import ping
from arcboxd.cli.restart import restart
from arcboxd.cli.resume import resume
from arcboxd.cli.rm import rm
from arcboxd.cli.set_machine import set_machine
from arcboxd.cli.ssh import ssh
from arcboxd.cli.start import start
from arcboxd.cli.stop import stop
from arcboxd.cli.suspend import suspend
from arcboxd.cli.top import top
from arcboxd.cli.usage import CliUsageError
from arcboxd.errors import ArcboxError

# Plain help: importing rich for it costs 150 ms, and plain text is what other tools read.
_PLAIN = None
_Verb = Callable[..., None]
_VERBS: tuple[_Verb, ...] = (
    *(create, start, stop, restart, suspend, resume, clone, cp, rm),
    *(ls, inspect, ping, info, top, logs),
)
# After NAME everything belongs to the command, even what looks like an option.
_VERBATIM = {"allow_interspersed_args": False}


def _typer(text: str) -> typer.Typer:
    return typer.Typer(cls=session.Group, help=text, no_args_is_help=True, rich_markup_mode=_PLAIN)


def _add_machine_verbs(group: typer.Typer) -> None:
    for verb in _VERBS:
        group.command(cls=session.Verb)(verb)
    group.command("set", cls=session.Verb)(set_machine)
    group.command("exec", cls=session.Verb, context_settings=_VERBATIM)(exec_)
    group.command(cls=session.Verb, context_settings=_VERBATIM)(ssh)
    of_snapshots = (snapshot.create, snapshot.ls, snapshot.restore, snapshot.rm)
    _add_group(group, "snapshot", "Machines as they once were.", of_snapshots)
    of_runtimes = (runtime.ensure, runtime.status)
    _add_group(group, "runtime", "containerd and Docker in a machine.", of_runtimes)
    of_ports = (port.add, port.rm, port.ls)
    _add_group(group, "port", "Forwards from the host to a machine.", of_ports)
    of_mounts = (mount.add, mount.rm, mount.ls)
    _add_group(group, "mount", "Directories of the host in a machine.", of_mounts)


def _add_group(group: typer.Typer, name: str, text: str, verbs: Sequence[_Verb]) -> None:
    added = _typer(text)
    for verb in verbs:
        added.command(verb.__name__.removesuffix("_"), cls=session.Verb)(verb)
    group.add_typer(added, name=name)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - 20 ms, and seldom asked for

        print(f"arcbox {version('arcboxd')}")
        raise typer.Exit


def _root(
    ctx: typer.Context,
    home: Annotated[
        str,
        typer.Option(metavar="DIR", help="State directory [env: ARCBOX_HOME; ~/.arcbox]."),
    ] = "",
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Linux machines, each with its own kernel."""
    ctx.obj = home


app = _typer("Linux machines, each with its own kernel.")
app.callback()(_root)
_add_machine_verbs(app)
app.command(cls=session.Verb)(doctor.doctor)
_machine = _typer("The verbs for machines, by their full name.")
_add_machine_verbs(_machine)
app.add_typer(_machine, name="machine")
_of_images: tuple[_Verb, ...] = (image.ls, image.pull, image.import_, image.rm)
_of_images += (image.prune, image.verify, image.prepare, image.update)
_add_group(app, "image", "What machines are made of.", _of_images)
_of_templates = (template.ls, template.rm, template.prune)
_add_group(app, "template", "Images booted ahead of new machines.", _of_templates)
_of_docker: tuple[_Verb, ...] = (docker.status, docker.env, docker.enable, docker.disable)
_add_group(app, "docker", "The docker client and our machines.", _of_docker)
_of_kubernetes: tuple[_Verb, ...] = (k8s.start, k8s.stop, k8s.delete, k8s.status)
_of_kubernetes += (k8s.load, k8s.kubeconfig, k8s.enable, k8s.disable)
_add_group(app, "k8s", "Kubernetes in a machine.", _of_kubernetes)
_of_daemon = (daemon.start, daemon.stop, daemon.status, daemon.run)
_add_group(app, "daemon", "The process behind all the others.", _of_daemon)


def run(argv: Sequence[str]) -> int:
    """Run a command line, without the program's name; give the exit status.

    0: done; 1: an error; 2: what was typed makes no sense; 125: an error of ours in ``exec``, whose
    other statuses are the guest's; 128+N: signal N.
    """
    try:
        status = app(list(argv), prog_name="arcbox", standalone_mode=False)
    except CliUsageError as error:
        session.report(error)
        return 2
    except ArcboxError as error:
        if session.debugging():
            raise
        session.report(error)
        return 1
    except typer.TyperException as error:
        return _usage(error)
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:
        if session.debugging():
            raise
        session.tell(
            f"internal error: {type(error).__name__}: {error}",
            "ARCBOX_DEBUG=1 shows where; please report it",
        )
        return 1
    return status if isinstance(status, int) else 0


def _usage(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        # Its message is the help itself.
        sys.stderr.write(error.format_message() + "\n")
    else:
        hint = f"{context.command_path} --help" if context else "arcbox --help"
        message = error.format_message()
        session.tell(message[:1].lower() + message[1:].rstrip("."), hint)
    return error.exit_code


def main() -> None:
    """Be the command ``arcbox``."""
    status = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = status or session.BROKEN_PIPE_STATUS
    sys.exit(status)


if __name__ == "__main__":
    main()
