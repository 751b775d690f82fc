"""Port forwards in QEMU's user-mode network, by its human monitor.

Seen on QEMU 7.2: ``hostfwd_add`` prints nothing when it worked and a sentence when the port is
taken; ``info usernet`` lists what is in force.
"""

from __future__ import annotations

import re

from arcboxd.errors import HypervisorError, NoRoomError
from arcboxd.hypervisor.base import Forward
from arcboxd.hypervisor.qemu.argv import NETDEV
from arcboxd.hypervisor.qemu.monitor import Monitor

_LINE = re.compile(
    r"^\s*(?P<protocol>TCP|UDP)\[HOST_FORWARD\]\s+\d+\s+(?P<host>\S+)\s+(?P<host_port>\d+)"
    r"\s+\S+\s+(?P<guest_port>\d+)\s"
)


def parse_usernet(text: str) -> tuple[Forward, ...]:
    """Read the forwards out of what ``info usernet`` prints."""
    found = []
    for line in text.splitlines():
        if match := _LINE.match(line + " "):
            host = "0.0.0.0" if match["host"] == "*" else match["host"]  # noqa: S104 - as QEMU says
            found.append(
                Forward(
                    match["protocol"].lower(),
                    host,
                    int(match["host_port"]),
                    int(match["guest_port"]),
                )
            )
    return tuple(found)


async def list_forwards(monitor: Monitor) -> tuple[Forward, ...]:
    """Tell the forwards that are in force.

    Raises:
        HypervisorError: The monitor does not answer.
    """
    return parse_usernet(await monitor.human("info usernet"))


async def add_forward(monitor: Monitor, forward: Forward) -> None:
    """Open a forward.

    Raises:
        NoRoomError: The host's port is taken.
        HypervisorError: The monitor does not answer.
    """
    said = await monitor.human(f"hostfwd_add {NETDEV} {_rule(forward)}-:{forward.guest_port}")
    if said.strip():
        raise NoRoomError(
            f"port {forward.host_port}/{forward.protocol} of {forward.host_address} is taken",
            hint=f"see who has it: ss -lnp 'sport = :{forward.host_port}'",
        )


async def remove_forward(monitor: Monitor, forward: Forward) -> None:
    """Close a forward; one that does not exist is no error.

    Raises:
        HypervisorError: The monitor does not answer, or QEMU says something unexpected.
    """
    said = await monitor.human(f"hostfwd_remove {NETDEV} {_rule(forward)}")
    if "removed" not in said and "not found" not in said:
        raise HypervisorError(f"QEMU did not close the forward {_rule(forward)}: {said.strip()}")


def _rule(forward: Forward) -> str:
    return f"{forward.protocol}:{forward.host_address}:{forward.host_port}"
