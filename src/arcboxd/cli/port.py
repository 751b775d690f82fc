"""``arcbox port``: forwards from the host to machines."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from arcboxd.cli import params, session
from arcboxd.cli.output import print_json, print_table
from arcboxd.cli.usage import CliUsageError
from arcboxd.client.views import NewPort, Port
from arcboxd.domain.ports import PortState

_HEADERS = ("MACHINE", "HOST", "GUEST", "SOURCE", "STATE", "DETAIL")
_PORT_HINT = "[HOST_ADDRESS:]HOST_PORT:[GUEST_ADDRESS:]GUEST_PORT[/udp], such as 8080:80"
_HOST_HINT = "[HOST_ADDRESS:]HOST_PORT[/udp], such as 8080"
_COLON = re.compile(r":(?![^\[]*\])")
"""One that is not within brackets, where it is an address's."""


def add(
    ctx: typer.Context,
    name: params.Machine,
    ports: Annotated[
        list[str],
        typer.Argument(
            metavar="[HOST_ADDRESS:]HOST_PORT:[GUEST_ADDRESS:]GUEST_PORT[/udp]...",
            help="What to forward; HOST_PORT 0 or none is any that is free.",
        ),
    ],
    as_json: params.Json = False,
) -> None:
    """Forward ports of the host to a machine, and print where it is reached.

    For as long as the machine exists: a stopped one has them from its next start on. GUEST_ADDRESS
    127.0.0.1 reaches what listens only there.
    """
    wanted = [parse_port(text) for text in ports]
    with session.connect(ctx) as client:
        made = []
        for each in wanted:
            made.append(client.add_port(name, each))
            if not as_json:
                print(host_side(made[-1]), flush=True)
    if as_json:
        print_json(made)
    closed = [port for port in made if port.state in {PortState.TAKEN, PortState.FAILED}]
    for port in closed:
        session.tell(
            f"{host_side(port)} is kept, but not open yet: {port.detail}",
            f"it opens once it can; or remove it with: arcbox port rm {name} {_place(port)}",
        )
    if closed:
        raise typer.Exit(1)


def rm(
    ctx: typer.Context,
    name: params.Machine,
    ports: Annotated[
        list[str],
        typer.Argument(
            metavar="[HOST_ADDRESS:]HOST_PORT[/udp]...", help="The host's side of the forwards."
        ),
    ],
) -> None:
    """Remove forwards that `port add` has made."""
    places = {text: parse_place(text) for text in ports}

    with session.connect(ctx) as client:

        def remove(text: str) -> None:
            protocol, address, port = places[text]
            client.remove_port(name, protocol, address, port)

        session.for_each(list(places), remove)


def ls(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]",
            help="The machine; all machines if none is given.",
            autocompletion=session.complete_machines,
        ),
    ] = "",
    as_json: params.Json = False,
) -> None:
    """List forwards: the user's own, SSH's, and those of containers' published ports.

    STATE is open; taken, when another has the host's port; waiting, when the machine does not run;
    or failed. A port that is taken opens by itself once it is free.
    """
    with session.connect(ctx) as client:
        ports = client.list_ports(name)
    if as_json:
        print_json(ports)
        return
    rows = [
        (p.machine, host_side(p), _guest_side(p), p.source, p.state, p.detail or "-") for p in ports
    ]
    print_table(_HEADERS, rows)


def parse_port(text: str) -> NewPort:
    """Read a forward as `add` takes it.

    Raises:
        CliUsageError: It is none.
    """
    rest, protocol = _protocol(text, _PORT_HINT)
    *before, guest_port = _COLON.split(rest)
    guest_address = before.pop() if before and _is_address(before[-1]) else ""
    host_port = before.pop() if before else ""
    host_address = before.pop() if before else ""
    if before or (host_address and not _is_address(host_address)):
        raise _wrong(text, _PORT_HINT)
    return NewPort(
        protocol=protocol,
        host_address=host_address.strip("[]"),
        host_port=_number(host_port or "0", text, _PORT_HINT),
        guest_address=guest_address.strip("[]"),
        guest_port=_number(guest_port, text, _PORT_HINT),
    )


def parse_place(text: str) -> tuple[str, str, int]:
    """Read the host's side of a forward: protocol, address and port.

    Raises:
        CliUsageError: It is none.
    """
    rest, protocol = _protocol(text, _HOST_HINT)
    *before, port = _COLON.split(rest)
    if len(before) > 1 or (before and not _is_address(before[0])):
        raise _wrong(text, _HOST_HINT)
    address = before[0].strip("[]") if before else ""
    return protocol, address, _number(port, text, _HOST_HINT)


def host_side(port: Port) -> str:
    """Write where the host listens; tcp is not named."""
    return _side(port.host_address, port.host_port, port.protocol)


def _guest_side(port: Port) -> str:
    if not port.guest_address:
        return f"{port.guest_port}"
    return _side(port.guest_address, port.guest_port, "tcp")


def _place(port: Port) -> str:
    return f"{port.host_port}" + ("" if port.protocol == "tcp" else f"/{port.protocol}")


def _side(address: str, port: int, protocol: str) -> str:
    address = f"[{address}]" if ":" in address else address
    return f"{address}:{port}" + ("" if protocol == "tcp" else f"/{protocol}")


def _protocol(text: str, hint: str) -> tuple[str, str]:
    rest, slash, protocol = text.partition("/")
    if slash and protocol not in {"tcp", "udp"}:
        raise _wrong(text, hint)
    return rest, protocol or "tcp"


def _is_address(part: str) -> bool:
    return part == "localhost" or "." in part or part.startswith("[")


def _number(digits: str, text: str, hint: str) -> int:
    if not (digits.isascii() and digits.isdigit() and int(digits) < 1 << 16):
        raise _wrong(text, hint)
    return int(digits)


def _wrong(text: str, hint: str) -> CliUsageError:
    return CliUsageError(f"{text!r} is no port to forward", hint=f"write {hint}")
