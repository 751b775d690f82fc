"""Protocols and sockets on streams."""

from __future__ import annotations

import asyncio
import socket

import pytest

from arcboxd.errors import LinkError
from arcboxd.link.mux import Handler
from arcboxd.link.peer import Stream, StreamTransport
from arcboxd.link.pump import pump
from arcboxd.link.stream import INITIAL_WINDOW
from tests.unit.link.simulation import World, chunks, exchange, run


class Recorder(asyncio.Protocol):
    def __init__(self, *, keep_open: bool = False) -> None:
        self.events: list[str] = []
        self.data = b""
        self.keep_open = keep_open
        self.transport: StreamTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, StreamTransport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.events.append("eof")
        return self.keep_open

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append(f"lost {exc}")


class EchoProtocol(Recorder):
    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)


def attach(protocol: asyncio.Protocol) -> Handler:
    async def handle(stream: Stream) -> None:
        await StreamTransport(stream, protocol).wait_closed()

    return handle


def test_a_protocol_runs_on_a_stream() -> None:
    protocol = EchoProtocol()

    async def main() -> None:
        world = World(accept=lambda _: attach(protocol))
        await world.both_up()
        assert await exchange(world.host, b"hello" * 40_000) == b"hello" * 40_000
        await asyncio.sleep(0.1)
        assert (world.host.stream_count, world.guest.stream_count) == (0, 0)

    run(main())
    assert protocol.events[-2:] == ["eof", "lost None"]


def test_a_protocol_is_told_when_the_peer_does_not_read() -> None:
    protocol = Recorder(keep_open=True)

    async def main() -> None:
        world = World(accept=lambda _: attach(protocol))
        await world.both_up()
        stream = await world.host.open("x")
        transport = protocol.transport
        assert transport is not None
        transport.write(bytes(INITIAL_WINDOW + 70_000))
        assert protocol.events == ["pause"]
        transport.close()
        await asyncio.sleep(1)
        assert protocol.events == ["pause"], "what was written must still be sent"
        await stream.close_write()
        got = b"".join([part async for part in chunks(stream)])
        assert len(got) == INITIAL_WINDOW + 70_000
        await asyncio.sleep(0.1)

    run(main())
    assert protocol.events == ["pause", "resume", "lost None"]


def test_a_paused_protocol_gets_nothing_and_the_peer_stops_at_the_window() -> None:
    protocol = Recorder()

    async def main() -> None:
        world = World(accept=lambda _: attach(protocol))
        await world.both_up()
        stream = await world.host.open("x")
        transport = protocol.transport
        assert transport is not None
        transport.pause_reading()
        stream.write_nowait(bytes(100_000))
        stream.finish()
        await asyncio.sleep(1)
        assert (protocol.data, stream.unsent_bytes) == (b"", 100_000 - INITIAL_WINDOW)
        transport.resume_reading()
        await asyncio.sleep(1)
        assert len(protocol.data) == 100_000

    run(main())
    assert protocol.events == ["eof", "lost None"]


def test_a_protocol_hears_of_a_reset() -> None:
    protocol = Recorder()

    async def main() -> None:
        world = World(accept=lambda _: attach(protocol))
        await world.both_up()
        stream = await world.host.open("x")
        stream.abort("enough")
        await asyncio.sleep(0.1)

    run(main())
    assert len(protocol.events) == 1
    assert protocol.events[0].endswith("enough")


def test_a_protocol_that_raises_loses_its_stream_only() -> None:
    class Bad(Recorder):
        def data_received(self, data: bytes) -> None:
            raise ValueError("bad")

    async def main() -> None:
        world = World(accept=lambda _: attach(Bad()))
        await world.both_up()
        stream = await world.host.open("x")
        await stream.write(b"x")
        with pytest.raises(LinkError, match="aborted"):
            await stream.read()
        assert world.host.session_count == 1

    run(main())


@pytest.mark.parametrize("hang_up", [False, True])
async def test_a_pump_copies_both_ways_and_closes_in_halves(hang_up: bool) -> None:
    ours, theirs = socket.socketpair()
    served = asyncio.Event()

    async def handle(stream: Stream) -> None:
        theirs.setblocking(False)
        await pump(stream, theirs)
        served.set()

    world = World(accept=lambda _: handle)
    await world.both_up()
    reader, writer = await asyncio.open_connection(sock=ours)
    stream = await world.host.open("socket")
    await stream.write(b"q" * 100)
    assert await reader.readexactly(100) == b"q" * 100
    if hang_up:
        writer.close()
        assert await stream.read() == b""
        with pytest.raises(LinkError, match="reads no more"):
            await stream.write(bytes(10_000_000))
    else:
        await stream.close_write()
        assert await reader.read() == b""
        writer.write(b"answer")
        writer.write_eof()
        assert await stream.read() + await stream.read() == b"answer"
        writer.close()
    await writer.wait_closed()
    await served.wait()
    world.host.close()
    world.guest.close()
    await asyncio.sleep(0)
