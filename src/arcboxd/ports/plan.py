"""What is to be forwarded, and which way: through the hypervisor's network, or over the link."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from arcboxd.domain.machine import GUEST_ADDRESS
from arcboxd.domain.ports import PortBinding, UserForward
from arcboxd.errors import InvalidArgumentError
from arcboxd.hypervisor.base import Forward

PROTOCOLS = ("tcp", "udp")
LOOPBACK = "127.0.0.1"
_ANY = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound
_LAST_PORT = (1 << 16) - 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """One forward: where the host listens, and what it reaches."""

    protocol: str
    host_address: str
    host_port: int
    guest_address: str
    """Empty: the machine's own."""
    guest_port: int

    @property
    def direct(self) -> Forward | None:
        """Give it as the hypervisor's own forward, if that can reach its end.

        The hypervisor's network has only the guest's one address, and only IPv4.
        """
        if self.guest_address not in {"", GUEST_ADDRESS} or ":" in self.host_address:
            return None
        return Forward(self.protocol, self.host_address, self.host_port, self.guest_port)

    @property
    def target(self) -> str:
        """Name its end as a stream's target, for one that goes over the link."""
        address = self.guest_address or GUEST_ADDRESS
        if ":" in address:
            address = f"[{address}]"
        return f"{self.protocol}:{address}:{self.guest_port}"

    def __str__(self) -> str:
        """Name the host's side as people write it."""
        address = f"[{self.host_address}]" if ":" in self.host_address else self.host_address
        return f"{address}:{self.host_port}/{self.protocol}"


def is_any(address: str) -> bool:
    """Tell whether an address stands for every one of its host."""
    return address in _ANY


def overlap(one: str, other: str) -> bool:
    """Tell whether two listeners of one port would be in each other's way."""
    return one == other or one in _ANY or other in _ANY


def published(bindings: Iterable[PortBinding], address: str) -> tuple[Wanted, ...]:
    """Plan a container's published ports, each once; what makes no sense is left out.

    Args:
        bindings: What the guest says.
        address: Of the host, for ports that are published on any.
    """
    planned = (_published(binding, address) for binding in bindings)
    return tuple(dict.fromkeys(wanted for wanted in planned if wanted is not None))


def _published(binding: PortBinding, address: str) -> Wanted | None:
    protocol, port = binding.protocol or "tcp", binding.host_port
    if protocol not in PROTOCOLS or not 0 < port <= _LAST_PORT:
        return None
    try:
        given = parse_address(binding.host_address)
        container = parse_address(binding.container_address)
    except InvalidArgumentError:
        return None
    if given in {"", GUEST_ADDRESS, *_ANY}:
        return Wanted(protocol, address, port, "", port)
    if not 0 < binding.container_port <= _LAST_PORT:
        return None
    host = LOOPBACK if given == "::1" else given
    # Bound where the hypervisor's network does not reach: by the container's own address.
    return Wanted(protocol, host, port, container or LOOPBACK, binding.container_port)


def asked(forward: UserForward) -> Wanted:
    """Plan a forward of the user's own."""
    return Wanted(
        forward.protocol,
        forward.host_address,
        forward.host_port,
        forward.guest_address,
        forward.guest_port,
    )


def check_protocol(protocol: str) -> str:
    """Give a protocol by its name; empty is tcp.

    Raises:
        InvalidArgumentError: It is another.
    """
    name = protocol.lower() or "tcp"
    if name not in PROTOCOLS:
        raise InvalidArgumentError(
            f"{protocol[:20]!r} cannot be forwarded", hint="a protocol is tcp or udp"
        )
    return name


def check_port(port: int, whose: str) -> int:
    """Refuse what is no port.

    Raises:
        InvalidArgumentError: It is none.
    """
    if not 0 < port <= _LAST_PORT:
        raise InvalidArgumentError(
            f"{port} is no port of the {whose}", hint=f"a port is a number from 1 to {_LAST_PORT}"
        )
    return port


def parse_address(text: str) -> str:
    """Give an address in its usual form; empty stays empty, and ``localhost`` is 127.0.0.1.

    Raises:
        InvalidArgumentError: It is no address.
    """
    if text in {"", "localhost"}:
        return LOOPBACK if text else ""
    try:
        # Without a zone, which is of one host's interfaces.
        address = ipaddress.ip_address(text.replace("%", " "))
    except ValueError as error:
        raise InvalidArgumentError(
            f"{text[:60]!r} is no IP address", hint="give one such as 127.0.0.1, or 0.0.0.0 for any"
        ) from error
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or address)
    return str(address)
