"""Gives the network card its addresses, without any program of the distribution.

`ipaddress` is not used: it does much for what the C library does in one call.

Source: netdevice(7); include/uapi/linux/route.h.
"""

# pathlib is not imported: start-up takes long under emulation.
# ruff: noqa: PTH110, PTH123, PTH208

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import socket
import struct
from functools import cache

_SIOCADDRT = 0x890B
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCGIFADDR = 0x8915
_SIOCSIFADDR = 0x8916
_SIOCSIFNETMASK = 0x891C
_SIOCSIFHWADDR = 0x8924
_SIOCGIFHWADDR = 0x8927
_IFF_UP = 0x1
_RTF_UP_GATEWAY = 0x3
_ETHERNET = "1"
_ARPHRD_ETHER = 1
_ETHERTYPE_IP, _ETHERTYPE_ARP = 0x0800, 0x0806
_MAX_PREFIX = 32
_WAIT_S = 1.0
_POLL_S = 0.02
_ADDRESS = struct.Struct("=H2x4s8x")  # struct sockaddr_in
_FOLDER = "/sys/class/net"
_ANNOUNCE_S = 0.1
_known_card = ""

_log = logging.getLogger(__name__)


async def configure(address: str, gateway: str, mac: str, *, only_mac: bool = False) -> None:
    """Bring up loopback and the first network card, with its addresses and a way out. Idempotent.

    Args:
        address: IPv4 in CIDR notation; empty: none.
        gateway: IPv4; empty: no default route.
        mac: Six bytes in hexadecimal, with colons; empty: as it is.
        only_mac: The rest is so already.

    Raises:
        OSError: No card appeared, or the kernel refused.
    """
    control = _control()
    if not only_mac:
        _bring(control, "lo", up=True)
    if not address and not mac:
        return
    card = _known_card if only_mac and _known_card else await _wait_for_card()
    packed_mac = bytes.fromhex(mac.replace(":", ""))
    changed = bool(mac) and (only_mac or _mac(control, card) != packed_mac)
    kept = not changed or _set_mac(control, card, packed_mac)
    if not address:
        return
    own, mask = parse_cidr(address)
    if not only_mac or not kept:
        if _address(control, card) != own:
            _set(control, _SIOCSIFADDR, card, own)
            _set(control, _SIOCSIFNETMASK, card, mask)
        _bring(control, card, up=True)
        if gateway:
            _add_default_route(control, parse_address(gateway))
    if changed:
        # Not in the way of whoever waits for us.
        asyncio.get_running_loop().call_later(_ANNOUNCE_S, _announce, card, packed_mac, own)


def parse_cidr(text: str) -> tuple[bytes, bytes]:
    """Parse an IPv4 address with the length of its network's prefix into itself and the mask.

    Raises:
        ValueError: It is none.
    """
    address, slash, length = text.partition("/")
    bits = int(length) if length.isascii() and length.isdigit() else _MAX_PREFIX + 1
    if not slash or bits > _MAX_PREFIX:
        raise ValueError(f"{text[:80]!r} is no address with a prefix's length")
    return parse_address(address), (-1 << (_MAX_PREFIX - bits) & 0xFFFFFFFF).to_bytes(4, "big")


def parse_address(text: str, *, ipv6: bool = False) -> bytes:
    """Parse an IP address.

    Raises:
        ValueError: It is none.
    """
    try:
        return socket.inet_pton(socket.AF_INET6 if ipv6 else socket.AF_INET, text)
    except OSError as error:
        raise ValueError(f"{text[:80]!r} is no IP address") from error


async def _wait_for_card() -> str:
    """Wait for the first card: its driver is loaded while the agent already answers."""
    global _known_card  # noqa: PLW0603  there is one first card
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _WAIT_S
    while not (cards := _cards()):
        if loop.time() > deadline:
            raise OSError(errno.ENODEV, "the guest has no network card")
        await asyncio.sleep(_POLL_S)
    _known_card = cards[0]
    return _known_card


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


def _announce(card: str, mac: bytes, address: bytes) -> None:
    """Tell the network that an address is ours.

    A clone may have said something under the template's card before it had its own, and nothing
    would come through to this one until it says something by itself. See RFC 5227, section 3.
    """
    everybody, nobody = b"\xff" * 6, bytes(6)
    request = struct.pack("!HHBBH", _ARPHRD_ETHER, _ETHERTYPE_IP, 6, 4, 1)
    packet = request + mac + address + nobody + address
    try:
        _link(card).send(everybody + mac + struct.pack("!H", _ETHERTYPE_ARP) + packet)
    except OSError as error:
        _log.warning("cannot announce the address of %s: %s", card, error)


# Both stay open, for the clones of this system: to open and close one takes them longer than to use
# it.


@cache
def _control() -> socket.socket:
    """Open what the kernel is asked through."""
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


@cache
def _link(card: str) -> socket.socket:
    """Open what frames are sent through; without a protocol nothing is received."""
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
    link.bind((card, 0))
    return link


def _mac(control: socket.socket, card: str) -> bytes:
    return fcntl.ioctl(control, _SIOCGIFHWADDR, _name(card) + bytes(24))[18:24]


def _set_mac(control: socket.socket, card: str, mac: bytes) -> bool:
    """Set the card's own address; say whether it kept its routes."""
    request = _name(card) + struct.pack("=H6s16x", _ARPHRD_ETHER, mac)
    try:
        fcntl.ioctl(control, _SIOCSIFHWADDR, request)  # virtio's takes it while it is up
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        _bring(control, card, up=False)
        fcntl.ioctl(control, _SIOCSIFHWADDR, request)
        _bring(control, card, up=True)
        return False
    return True


def _bring(control: socket.socket, card: str, *, up: bool) -> None:
    answer = fcntl.ioctl(control, _SIOCGIFFLAGS, _name(card) + bytes(24))
    (flags,) = struct.unpack_from("=H", answer, 16)
    wanted = flags | _IFF_UP if up else flags & ~_IFF_UP
    if wanted != flags:
        request = _name(card) + struct.pack("=H22x", wanted)
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
