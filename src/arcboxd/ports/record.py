"""The user's own forwards of a machine, in a file that survives everything but the machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from arcboxd import durable
from arcboxd.domain.ports import UserForward
from arcboxd.errors import InvalidArgumentError, StoreError
from arcboxd.ports.plan import check_port, check_protocol, parse_address

_VERSION = 1


def read(path: Path) -> tuple[UserForward, ...]:
    """Read a machine's forwards; there are none where there is no file.

    Raises:
        StoreError: The file cannot be read, or is not what we wrote.
    """
    try:
        document = json.loads(path.read_bytes())
        if document["version"] != _VERSION:
            raise ValueError(f"its version is {document['version']!r}")  # noqa: TRY301
        return tuple(_forward(item) for item in document["forwards"])
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError, InvalidArgumentError) as error:
        raise StoreError(
            f"the machine's forwards cannot be read from {path}: {error}",
            hint="put that file right, or remove it and add the forwards again",
        ) from error


def write(path: Path, forwards: Iterable[UserForward]) -> None:
    """Write them durably.

    Raises:
        NoRoomError: The disk is full; the file is as it was.
        StoreError: It cannot be written; the file is as it was.
    """
    document = {"version": _VERSION, "forwards": [asdict(forward) for forward in forwards]}
    with durable.storing("record the machine's forwards"):
        durable.write(path, json.dumps(document, indent=1).encode())


def _forward(item: dict[str, object]) -> UserForward:
    return UserForward(
        protocol=check_protocol(str(item["protocol"])),
        host_address=parse_address(str(item["host_address"])),
        host_port=check_port(_number(item["host_port"]), "host"),
        guest_address=parse_address(str(item["guest_address"])),
        guest_port=check_port(_number(item["guest_port"]), "guest"),
    )


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no number")
    return value
