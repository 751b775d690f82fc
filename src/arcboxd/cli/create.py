"""``arcbox create``: record a new machine."""
# ruff: noqa: PLC0415, PLR0917 - see session; a parameter an option

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from arcboxd.cli import params, session, shape
from arcboxd.cli.output import print_json
from arcboxd.cli.start import start_one
from arcboxd.cli.usage import CliUsageError

_KEY_LIMIT_BYTES = 64 << 10


def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="a-z, 0-9 and '-'.")],
    cpus: shape.Cpus = 0,
    memory: shape.Memory = "",
    disk: shape.Disk = "",
    distro: shape.Distro = "",
    version: shape.Version = "",
    arch: shape.Arch = "",
    ssh_key: Annotated[
        str, typer.Option(metavar="FILE", help="A public key that may log in; - reads stdin.")
    ] = "",
    mount: Annotated[
        list[str] | None,
        typer.Option("--mount", metavar="HOST:GUEST[:ro]", help="Share a directory. Repeatable."),
    ] = None,
    kernel: Annotated[str, typer.Option(metavar="PATH", help="A kernel instead of ours.")] = "",
    cmdline: Annotated[str, typer.Option(help="Appended to the kernel's command line.")] = "",
    start: Annotated[bool, typer.Option("--start", help="Start it as well.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Start it, and wait until its init has started all.")
    ] = False,
    quiet: params.Quiet = False,
    as_json: params.Json = False,
) -> None:
    """Create a machine, and print its id. Sizes take K, M, G, T: powers of 1024."""
    fields: dict[str, Any] = {
        "name": name,
        **shape.checked(cpus, memory, disk, distro, version, arch),
        "ssh_public_key": read_key(ssh_key) if ssh_key else "",
        "kernel": str(Path(kernel).expanduser().absolute()) if kernel else "",
        "cmdline": cmdline,
    }
    mounts = [parse_mount(text) for text in mount or ()]

    from arcboxd.cli.progress import shown
    from arcboxd.domain.machine import DirectoryMount, NewMachine

    new = NewMachine(**fields, mounts=tuple(DirectoryMount(*m) for m in mounts))
    with session.connect(ctx) as client:
        with shown(client, name, quiet=quiet):
            machine_id = client.create(new)
        # Before the start, which may fail: the machine is there, and scripts want its id.
        if as_json:
            print_json({"id": machine_id, "name": name})
        else:
            print(machine_id)
        sys.stdout.flush()
        if start or wait:
            start_one(client, machine_id, name, wait=wait, quiet=quiet)


def parse_mount(text: str) -> tuple[str, str, bool]:
    """Read ``HOST:GUEST[:ro]``; a relative HOST starts where the user stands.

    Raises:
        CliUsageError: It is not of that form.
    """
    match = re.fullmatch(r"(.+?):(/[^:]*)(?::(ro|rw))?", text, re.DOTALL)
    if match is None:
        raise CliUsageError(
            f"the mount {text!r} is not HOST:GUEST or HOST:GUEST:ro, with GUEST an absolute path",
            hint="for example: ~/src:/src:ro",
        )
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise CliUsageError(f"the mount {text!r} has bytes that are no UTF-8")
    return str(Path(match[1]).expanduser().absolute()), match[2], match[3] == "ro"


def read_key(source: str) -> str:
    """Read a public key from a file, or from stdin for ``-``.

    Raises:
        CliUsageError: It cannot be read, or is not one public key.
    """
    try:
        if source == "-":
            data = sys.stdin.buffer.read(_KEY_LIMIT_BYTES)
        else:
            with Path(source).expanduser().open("rb") as file:
                data = file.read(_KEY_LIMIT_BYTES)
    except OSError as error:
        raise CliUsageError(f"--ssh-key {source}: {error.strerror}") from error
    if b"PRIVATE KEY" in data:
        raise CliUsageError(
            f"--ssh-key {source} is a private key, which never leaves your side",
            hint=f"give its public half: {source}.pub",
        )
    lines = [line for line in data.decode(errors="replace").splitlines() if line.strip()]
    if len(lines) != 1:
        raise CliUsageError(f"--ssh-key {source} holds {len(lines)} lines; one key is meant")
    return lines[0].strip()
