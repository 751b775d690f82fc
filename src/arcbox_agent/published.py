"""Follows Docker: which containers publish which ports, and each change of that."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, NamedTuple

from arcbox_agent.docker_api import Docker, DockerError, NoSuchContainerError
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2, common_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Send = Callable[[guest_pb2.GuestEvent], Awaitable[None]]

_ANSWER_S = 5.0
_LOOK_S = 2.0  # for a Docker that the agent did not start
_FIRST_DELAY_S = 0.1
_FILTERS = {
    "type": ["container", "network"],
    "event": ["start", "die", "destroy", "rename", "connect", "disconnect"],
}
_ANY, _ANY6 = "0.0.0.0", "::"  # noqa: S104  what a container asked for

_log = logging.getLogger(__name__)


async def follow(
    socket: str, send: Send, docker_changed: asyncio.Event, *, is_synced: bool
) -> None:
    """Send all that is published, then `synced`, then each change, for ever.

    When Docker goes away, nothing is taken back: its containers may well run on. Once it answers
    again, what has changed meanwhile is sent. Errors of `send` pass.

    Args:
        socket: Docker's, which need not exist yet.
        send: Takes the events.
        docker_changed: Set by who knows that Docker has just become ready.
        is_synced: `synced` was sent already, when there was no Docker.
    """
    follower = _Follower(Docker(socket), send, is_synced=is_synced)
    delay_s = _FIRST_DELAY_S
    while True:
        docker_changed.clear()
        if os.path.exists(socket):  # noqa: ASYNC240, PTH110  a look at memory
            try:
                await follower.run()
            except DockerError as error:
                if follower.was_current:
                    _log.info("Docker is no longer followed: %s", error.message)
            if follower.was_current:
                delay_s = _FIRST_DELAY_S
        else:
            delay_s = _LOOK_S
        await follower.synced()
        try:
            async with asyncio.timeout(delay_s):
                await docker_changed.wait()
        except TimeoutError:
            delay_s = min(delay_s * 2, _LOOK_S)


class _Follower:
    """What was sent, over all connections."""

    def __init__(self, docker: Docker, send: Send, *, is_synced: bool) -> None:
        self.was_current = False
        self._docker = docker
        self._send = send
        self._sent: dict[str, guest_pb2.PublishedPorts] = {}
        self._synced = is_synced

    async def synced(self) -> None:
        """Say, once, that all there is was sent."""
        if not self._synced:
            self._synced = True
            await self._send(guest_pb2.GuestEvent(synced=guest_pb2.Synced()))

    async def run(self) -> None:
        """Follow until Docker goes away; raises DockerError then."""
        self.was_current = False
        # Subscribed first: nothing can happen unseen between the list and the events.
        async with self._docker.events(_FILTERS, _ANSWER_S) as events:
            await self._list()
            self.was_current = True
            await self.synced()
            async for event in events:
                container = _container_of(event)
                if container:
                    await self._look(container)
        raise DockerError("its events have ended")

    async def _list(self) -> None:
        containers = await self._docker.get("/containers/json", _ANSWER_S)
        running = set()
        for each in containers if isinstance(containers, list) else []:
            # A container without public ports now may be one whose ports are just being opened:
            # then an event follows.
            if any(port.get("PublicPort") for port in each.get("Ports") or ()):
                running.add(each["Id"])
        for container in [each for each in self._sent if each not in running]:
            await self._remove(container)
        for container in running:
            await self._look(container)

    async def _look(self, container: str) -> None:
        """Send a container's ports, or that it has none any more, unless that is known."""
        try:
            state = await self._docker.get(f"/containers/{container}/json", _ANSWER_S)
        except NoSuchContainerError:
            state = None
        ports = parse_container(state) if isinstance(state, dict) else None
        if ports is None or not ports.changed.bindings:
            await self._remove(container)
        elif self._sent.get(container) != ports:
            self._sent[container] = ports
            await self._send(guest_pb2.GuestEvent(ports=ports))

    async def _remove(self, container: str) -> None:
        if self._sent.pop(container, None) is not None:
            removed = agent_pb2.PortBindingsRemoved(container_id=container)
            await self._send(guest_pb2.GuestEvent(removed=removed))


def _container_of(event: dict[str, object]) -> str:
    """Say which container an event of Docker's is about."""
    actor = event.get("Actor")
    if not isinstance(actor, dict):
        return ""
    if event.get("Type") == "container":
        return str(actor.get("ID") or "")
    attributes = actor.get("Attributes")
    return str(attributes.get("container") or "") if isinstance(attributes, dict) else ""


class _Binding(NamedTuple):
    container_port: int
    protocol: str
    host_port: int
    host_ip: str


def parse_container(state: dict[str, object]) -> guest_pb2.PublishedPorts | None:
    """Parse what `docker inspect` says into the ports of a running container; else None.

    A port that is published at any address, of IPv4 and of IPv6, is one binding.
    """
    running = _part(state, "State").get("Running") is True
    network = _part(state, "NetworkSettings")
    if not running:
        return None
    bindings = set(_bindings(_part(network, "Ports")))
    kept = [
        each
        for each in sorted(bindings)
        if each.host_ip != _ANY6 or each._replace(host_ip=_ANY) not in bindings
    ]
    address = _address(network)
    return guest_pb2.PublishedPorts(
        changed=agent_pb2.PortBindingsChanged(
            container_id=str(state.get("Id", "")),
            bindings=[_to_wire(each) for each in kept],
        ),
        targets=[
            guest_pb2.PortTarget(
                address=address, port=each.container_port if address else each.host_port
            )
            for each in kept
        ],
        name=str(state.get("Name", "")).lstrip("/"),
    )


def _to_wire(binding: _Binding) -> common_pb2.PortBinding:
    return common_pb2.PortBinding(
        container_port=binding.container_port,
        host_port=binding.host_port,
        protocol=binding.protocol,
        host_ip=binding.host_ip,
    )


def _bindings(ports: dict[str, object]) -> Iterator[_Binding]:
    for port, published in ports.items():
        number, _, protocol = port.partition("/")
        for each in published if isinstance(published, list) else ():
            host_port = str(each.get("HostPort", ""))
            if number.isdigit() and host_port.isdigit() and int(host_port):
                host_ip = each.get("HostIp") or _ANY
                yield _Binding(int(number), protocol or "tcp", int(host_port), host_ip)


def _address(network: dict[str, object]) -> str:
    """Give an address of the container's by which the guest reaches it; one with a way out first.

    Networks without a gateway may be such as macvlan's, which the guest itself does not reach.
    """
    found = [each for each in _part(network, "Networks").values() if isinstance(each, dict)]
    found.sort(key=lambda each: not each.get("Gateway"))
    addresses = [str(each["IPAddress"]) for each in found if each.get("IPAddress")]
    return addresses[0] if addresses else ""


def _part(whole: dict[str, object], name: str) -> dict[str, object]:
    part = whole.get(name)
    return part if isinstance(part, dict) else {}
