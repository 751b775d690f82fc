"""Sockets of the host that a forward listens on, and why one cannot be had."""

from __future__ import annotations

import errno
import socket

from arcboxd.errors import NoRoomError, PreconditionError
from arcboxd.ports.plan import Wanted

_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def listen(wanted: Wanted) -> socket.socket:
    """Bind the host's side of a forward; a stream socket does not listen yet.

    Raises:
        NoRoomError: The port is taken.
        PreconditionError: This host cannot open it: the address is not its own, or the port is
            for root only.
    """
    return _bind(wanted, wanted.host_port)


def probe(wanted: Wanted) -> None:
    """See whether another program could open the host's side of a forward; as `listen`."""
    listen(wanted).close()


def free_port(wanted: Wanted) -> int:
    """Give a port that nobody has at the moment, for the host's side of a forward; as `listen`."""
    with _bind(wanted, 0) as sock:
        return int(sock.getsockname()[1])


def _bind(wanted: Wanted, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in wanted.host_address else socket.AF_INET
    sock = None
    try:
        sock = socket.socket(family, _KINDS[wanted.protocol] | socket.SOCK_NONBLOCK)
        if wanted.protocol == "tcp":
            # As QEMU binds; two datagram sockets that do so would share the port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((wanted.host_address, port))
    except OSError as error:
        if sock is not None:
            sock.close()
        raise _reason(wanted, error) from error
    return sock


def _reason(wanted: Wanted, error: OSError) -> NoRoomError | PreconditionError:
    if error.errno == errno.EADDRINUSE:
        return taken(wanted)
    if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
        return PreconditionError(
            f"this host has no address {wanted.host_address}", hint="see those it has: ip address"
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return PreconditionError(
            f"port {wanted.host_port} is for root only on this host",
            hint=f"allow it with: sysctl net.ipv4.ip_unprivileged_port_start={wanted.host_port}",
        )
    return PreconditionError(f"{wanted} cannot be opened: {error.strerror}")


def taken(wanted: Wanted, by: str = "") -> NoRoomError:
    """Say that a port is taken, and by whom if that is known."""
    return NoRoomError(
        f"{wanted} is taken by {by or 'another program'}",
        hint="" if by else f"see which: ss -lnp 'sport = :{wanted.host_port}'",
    )
