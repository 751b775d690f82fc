"""Gives the network card its address, without any program of the distribution.

Source: netdevice(7); include/uapi/linux/route.h.
"""

# pathlib is not imported: start-up takes long under emulation.
# ruff: noqa: PTH110, PTH123, PTH208

from __future__ import annotations

import asyncio
import errno
import fcntl
import ipaddress
import os
import socket
import struct

_SIOCADDRT = 0x890B
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCGIFADDR = 0x8915
_SIOCSIFADDR = 0x8916
_SIOCSIFNETMASK = 0x891C
_IFF_UP = 0x1
_RTF_UP_GATEWAY = 0x3
_ETHERNET = "1"
_WAIT_S = 1.0
_POLL_S = 0.02
_ADDRESS = struct.Struct("=H2x4s8x")  # struct sockaddr_in
_FOLDER = "/sys/class/net"


async def configure(address: str, gateway: str) -> None:
    """Bring up loopback and the first network card, with an address and a way out. Idempotent.

    Args:
        address: IPv4 in CIDR notation; empty: none.
        gateway: IPv4; empty: no default route.

    Raises:
        OSError: No card appeared, or the kernel refused.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        _set_up(control, "lo")
        if not address:
            return
        card = await _wait_for_card()
        interface = ipaddress.IPv4Interface(address)
        if _address(control, card) != interface.ip.packed:
            _set(control, _SIOCSIFADDR, card, interface.ip.packed)
            _set(control, _SIOCSIFNETMASK, card, interface.netmask.packed)
        _set_up(control, card)
        if gateway:
            _add_default_route(control, ipaddress.IPv4Address(gateway).packed)


async def _wait_for_card() -> str:
    """Wait for the first card: its driver is loaded while the agent already answers."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _WAIT_S
    while not (cards := _cards()):
        if loop.time() > deadline:
            raise OSError(errno.ENODEV, "the guest has no network card")
        await asyncio.sleep(_POLL_S)
    return cards[0]


def _cards() -> list[str]:
    """List the Ethernet devices; a bridge or the like has no `device`."""
    found = []
    for name in sorted(os.listdir(_FOLDER)):
        if os.path.exists(f"{_FOLDER}/{name}/device"):
            with open(f"{_FOLDER}/{name}/type", encoding="ascii") as file:
                if file.read().strip() == _ETHERNET:
                    found.append(name)
    return found


def _name(card: str) -> bytes:
    return card.encode().ljust(16, b"\0")


def _set(control: socket.socket, request: int, card: str, packed: bytes) -> None:
    fcntl.ioctl(control, request, _name(card) + _ADDRESS.pack(socket.AF_INET, packed) + bytes(8))


def _address(control: socket.socket, card: str) -> bytes:
    try:
        answer = fcntl.ioctl(control, _SIOCGIFADDR, _name(card) + bytes(24))
    except OSError:  # it has none
        return b""
    return answer[20:24]


def _set_up(control: socket.socket, card: str) -> None:
    answer = fcntl.ioctl(control, _SIOCGIFFLAGS, _name(card) + bytes(24))
    (flags,) = struct.unpack_from("=H", answer, 16)
    if not flags & _IFF_UP:
        request = _name(card) + struct.pack("=H22x", flags | _IFF_UP)
        fcntl.ioctl(control, _SIOCSIFFLAGS, request)


def _add_default_route(control: socket.socket, gateway: bytes) -> None:
    anywhere = _ADDRESS.pack(socket.AF_INET, bytes(4))
    via = _ADDRESS.pack(socket.AF_INET, gateway)
    # struct rtentry of a 64-bit kernel: pad, destination, gateway, mask, flags, then nothing but
    # zeros.
    route = bytes(8) + anywhere + via + anywhere + struct.pack("=H", _RTF_UP_GATEWAY)
    try:
        fcntl.ioctl(control, _SIOCADDRT, route.ljust(120, b"\0"))
    except FileExistsError:
        return
