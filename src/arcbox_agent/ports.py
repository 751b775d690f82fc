"""WaitForPort: looks for a listener without connecting to it."""

# pathlib is not imported: start-up takes long under emulation.
# ruff: noqa: PTH123

from __future__ import annotations

import asyncio
import os
import time

from arcbox_agent.child import DEFAULT_PATH
from arcboxd.errors import ArcboxError, ErrorKind, InvalidArgumentError, PreconditionError

_POLL_S = 0.05
_MAX_WAIT_S = 600.0
_LISTEN = "0A"
_SSH = 22
_SSH_SERVERS = ("sshd", "dropbear", "tinysshd")
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


class NothingListensError(ArcboxError):
    """Nothing listened on the port within the time."""

    kind = ErrorKind.NOT_FOUND


async def wait_for_port(port: int, timeout_s: float) -> None:
    """Wait until something in the guest listens on a TCP port, on whatever address.

    Raises:
        InvalidArgumentError: There is no such port.
        NothingListensError: The time is over; ten minutes are the most there is.
        PreconditionError: It is SSH's port, and the guest has no server for that.
    """
    if not 0 < port < 1 << 16:
        raise InvalidArgumentError(f"There is no TCP port {port}.")
    deadline = time.monotonic() + min(timeout_s, _MAX_WAIT_S)
    while not _listens(port):
        if port == _SSH and not _has_ssh_server():
            raise PreconditionError(
                "The guest has no SSH server.",
                hint="Install one in it, such as openssh-server (Debian) or openssh (Alpine), and "
                "start it. Commands and shells work without: arcbox exec.",
            )
        left = deadline - time.monotonic()
        if left <= 0:
            raise NothingListensError(f"Nothing in the guest listens on TCP port {port}.")
        await asyncio.sleep(min(_POLL_S, left))


def _has_ssh_server() -> bool:
    return any(
        os.access(f"{folder}/{name}", os.X_OK)
        for folder in DEFAULT_PATH.split(":")
        for name in _SSH_SERVERS
    )


def _listens(port: int) -> bool:
    for path in _TABLES:
        try:
            with open(path, encoding="ascii") as file:
                if has_listener(file.read(), port):
                    return True
        except FileNotFoundError:  # a kernel without IPv6
            continue
    return False


def has_listener(table: str, port: int) -> bool:
    """Look into the text of /proc/net/tcp. See proc(5)."""
    wanted = f":{port:04X} "
    if wanted not in table:  # nearly always, and cheap
        return False
    for line in table.splitlines():
        fields = line.split()
        if fields[3] == _LISTEN and fields[1].endswith(wanted.rstrip()):
            return True
    return False
