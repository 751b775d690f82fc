"""Forwards over the link: real sockets, a real session, and the agent's own targets."""
# ruff: noqa: S104 - compared, or meant to be open

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import closing

import pytest

from arcboxd.errors import NoRoomError, PreconditionError
from arcboxd.ports import datagrams
from arcboxd.ports.datagrams import UdpRelay
from arcboxd.ports.plan import Wanted
from arcboxd.ports.relay import Slots, TcpRelay
from tests.docker_guest import LinkedGuest


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
async def guest() -> AsyncIterator[LinkedGuest]:
    guest = LinkedGuest(lambda: None)
    yield guest
    guest.close()
    await asyncio.sleep(0.05)


class Echo(asyncio.DatagramProtocol):
    """A service in the guest that says who asked, and what."""

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport
        self.seen: list[bytes] = []
        self.peers: set[tuple[str, int]] = set()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.seen.append(data)
        self.peers.add(addr)
        self.transport.sendto(data.upper(), addr)


async def test_a_connection_keeps_its_half_closes_and_every_byte(guest: LinkedGuest) -> None:
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Answers only when the client has said all.
        received = await reader.read()
        writer.write(b"%d " % len(received) + received[::-1])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(count, "127.0.0.1", 0)
    port, host_port = server.sockets[0].getsockname()[1], free_port()
    wanted = Wanted("tcp", "127.0.0.1", host_port, "127.0.0.1", port)
    slots = Slots(8)
    relay = TcpRelay(wanted, guest.open_stream, slots)
    await relay.open()
    sent = os.urandom(2_000_000)
    for _ in range(12):  # more than there are slots, one after another
        reader, writer = await asyncio.open_connection("127.0.0.1", host_port)
        writer.write(sent)
        writer.write_eof()
        assert await reader.read() == b"2000000 " + sent[::-1]
        writer.close()
        await writer.wait_closed()
    server.close()
    await server.wait_closed()
    reader, writer = await asyncio.open_connection("127.0.0.1", host_port)
    with pytest.raises(ConnectionResetError):
        await reader.read()  # as where nobody listens
    writer.close()
    await relay.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", host_port)


async def test_no_more_connections_than_the_machine_may_have(guest: LinkedGuest) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"here")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    host_port = free_port()
    wanted = Wanted("tcp", "127.0.0.1", host_port, "127.0.0.1", server.sockets[0].getsockname()[1])
    relay = TcpRelay(wanted, guest.open_stream, Slots(2))
    await relay.open()
    held = [await asyncio.open_connection("127.0.0.1", host_port) for _ in range(2)]
    for reader, _ in held:
        assert await reader.readexactly(4) == b"here"
    reader, writer = await asyncio.open_connection("127.0.0.1", host_port)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    held[0][1].close()
    await held[0][1].wait_closed()

    async def admitted() -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", host_port)
        with closing(writer):
            try:
                return await reader.readexactly(4) == b"here"
            except (ConnectionResetError, asyncio.IncompleteReadError):
                return False

    async with asyncio.timeout(5):
        while not await admitted():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await relay.close()
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await held[1][0].readexactly(1)
    held[1][1].close()
    server.close()


async def test_datagrams_go_both_ways_and_clients_are_told_apart(guest: LinkedGuest) -> None:
    loop = asyncio.get_running_loop()
    service, echo = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    host_port = free_port(socket.SOCK_DGRAM)
    port = service.get_extra_info("sockname")[1]
    wanted = Wanted("udp", "127.0.0.1", host_port, "127.0.0.1", port)
    relay = UdpRelay(wanted, guest.open_stream, Slots(8))
    await relay.open()
    clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
    for number, client in enumerate(clients):
        client.setblocking(False)
        client.connect(("127.0.0.1", host_port))
        for text in (f"client {number}", "x" * 60_000):
            client.send(text.encode())
            async with asyncio.timeout(5):
                assert await loop.sock_recv(client, 65536) == text.upper().encode()
    assert len(echo.peers) == 3
    await relay.close()
    clients[0].send(b"nobody")
    with pytest.raises(ConnectionRefusedError):
        async with asyncio.timeout(5):
            await loop.sock_recv(clients[0], 100)
    for client in clients:
        client.close()
    service.close()


async def test_idle_clients_are_forgotten_and_a_new_one_displaces_the_idlest(
    guest: LinkedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "_MAX_CLIENTS", 2)
    loop = asyncio.get_running_loop()
    service, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    host_port = free_port(socket.SOCK_DGRAM)
    port = service.get_extra_info("sockname")[1]
    wanted = Wanted("udp", "127.0.0.1", host_port, "127.0.0.1", port)
    relay = UdpRelay(wanted, guest.open_stream, Slots(8))
    await relay.open()

    async def ask(client: socket.socket, text: bytes) -> None:
        client.send(text)
        async with asyncio.timeout(5):
            assert await loop.sock_recv(client, 100) == text.upper()

    clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
    for client in clients:
        client.setblocking(False)
        client.connect(("127.0.0.1", host_port))
    await ask(clients[0], b"a")
    await ask(clients[1], b"b")
    await ask(clients[0], b"a")
    await ask(clients[2], b"c")
    await until(lambda: len(relay._tasks) == 2)
    assert [address[1] for address in relay._clients] == [
        clients[0].getsockname()[1],
        clients[2].getsockname()[1],
    ]
    # Longer than an answer takes on a busy host.
    monkeypatch.setattr(datagrams, "_IDLE_S", 1.0)
    await ask(clients[0], b"a")
    await ask(clients[1], b"b")
    await until(lambda: not relay._clients)
    assert guest.host.stream_count == 0
    # What comes later is served all the same.
    await ask(clients[1], b"again")
    await relay.close()
    for client in clients:
        client.close()
    service.close()


async def test_what_the_host_cannot_open_is_told_apart(guest: LinkedGuest) -> None:
    slots = Slots(1)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        wanted = Wanted("tcp", "127.0.0.1", other.getsockname()[1], "127.0.0.1", 1)
        with pytest.raises(NoRoomError, match="taken by another program"):
            await TcpRelay(wanted, guest.open_stream, slots).open()
        anywhere = Wanted("tcp", "0.0.0.0", other.getsockname()[1], "127.0.0.1", 1)
        with pytest.raises(NoRoomError):
            await TcpRelay(anywhere, guest.open_stream, slots).open()
    for kind, relay in (("tcp", TcpRelay), ("udp", UdpRelay)):
        with pytest.raises(PreconditionError, match=r"no address 192\.0\.2\.7"):
            await relay(Wanted(kind, "192.0.2.7", 8080, "", 1), guest.open_stream, slots).open()
