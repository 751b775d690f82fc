"""The addresses of the network interfaces, asked of the kernel.

Source: rtnetlink(7), RTM_GETADDR.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_RTM_GETADDR = 22
_RTM_NEWADDR = 20
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_REQUEST_DUMP = 0x301
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_SCOPE_LINK = 253
_HEADER = struct.Struct("=IHHII")
_BODY = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_TIMEOUT_S = 2.0


def list_addresses() -> list[str]:
    """List the addresses of all interfaces, IPv4 first, in the order of the interfaces.

    Without loopback, and without link-local IPv6 ones: those say nothing without their interface.

    Raises:
        OSError: The kernel did not answer.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
        link.settimeout(_TIMEOUT_S)
        size = _HEADER.size + _BODY.size
        request = _HEADER.pack(size, _RTM_GETADDR, _NLM_F_REQUEST_DUMP, 1, 0)
        link.send(request + _BODY.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
        found: list[tuple[int, int, str]] = []
        done = False
        while not done:
            done = parse_addresses(link.recv(65536), found)
    return [text for _, _, text in sorted(found, key=lambda each: each[:2])]


def parse_addresses(packet: bytes, found: list[tuple[int, int, str]]) -> bool:
    """Add a packet's addresses as (family, interface, text); say whether it was the last packet."""
    offset = 0
    while offset + _HEADER.size <= len(packet):
        length, kind, _, _, _ = _HEADER.unpack_from(packet, offset)
        if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < _HEADER.size:
            return True
        if kind == _RTM_NEWADDR:
            family, _, _, scope, index = _BODY.unpack_from(packet, offset + _HEADER.size)
            body = packet[offset + _HEADER.size + _BODY.size : offset + length]
            values = dict(_attributes(body))
            # On a point-to-point interface ADDRESS is the other end's and LOCAL is ours.
            raw = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
            if raw and scope < _SCOPE_LINK and family in (socket.AF_INET, socket.AF_INET6):
                found.append((family, index, socket.inet_ntop(family, raw)))
        offset += (length + 3) & ~3
    return False


def _attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind, body[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
