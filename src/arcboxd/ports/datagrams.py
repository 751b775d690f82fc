"""UDP forwards over the link: the daemon's socket, and a stream for each client's datagrams."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict

from arcboxd import aio
from arcboxd.errors import ArcboxError, LinkError
from arcboxd.link.datagrams import MAX_UNSENT_BYTES, Splitter, frame
from arcboxd.link.stream import Stream
from arcboxd.ports.plan import Wanted
from arcboxd.ports.relay import OpenStream, Slots
from arcboxd.ports.sockets import listen

_log = logging.getLogger(__name__)

_IDLE_S = 60.0
_MAX_CLIENTS = 128
_MAX_EARLY = 16
"""Datagrams of a client that wait for its stream."""

_Address = tuple[str | int, ...]


class UdpRelay(asyncio.DatagramProtocol):
    """A socket of the host, whose clients' datagrams reach a target in the guest, and back."""

    def __init__(self, wanted: Wanted, open_stream: OpenStream, slots: Slots) -> None:
        """Prepare; `open` begins."""
        self._wanted = wanted
        self._open_stream = open_stream
        self._slots = slots
        self._transport: asyncio.DatagramTransport | None = None
        self._clients: OrderedDict[_Address, _Client] = OrderedDict()
        """Those heard of longest ago first."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Take datagrams.

        Raises:
            NoRoomError: The port is taken.
            PreconditionError: This host cannot open it.
        """
        loop = asyncio.get_running_loop()
        sock = listen(self._wanted)
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=sock)

    async def close(self) -> None:
        """Take no more, and forget the clients. Idempotent."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        for task in tuple(self._tasks):
            await aio.cancel(task)

    def datagram_received(self, data: bytes, address: _Address) -> None:
        """Pass a client's datagram on."""
        client = self._clients.get(address)
        if client is None:
            client = self._new_client(address)
            if client is None:
                return
        self._clients.move_to_end(address)
        client.send(data)

    def error_received(self, error: Exception) -> None:
        """Go on: a client that is gone is no reason to stop."""
        _log.debug("%s: %s", self._wanted, error)

    def send(self, data: bytes, address: _Address) -> None:
        """Send the guest's answer to a client."""
        if self._transport is not None:
            self._transport.sendto(data, address)

    def _new_client(self, address: _Address) -> _Client | None:
        if len(self._clients) >= _MAX_CLIENTS:
            _, idlest = self._clients.popitem(last=False)
            idlest.end()
        if not self._slots.take():
            return None
        client = _Client(self, address)
        task = aio.spawn(client.run(self._open_stream, self._wanted), name=f"to {self._wanted}")
        client.task = task
        self._clients[address] = client
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._slots.give_back()
            if self._clients.get(address) is client:
                del self._clients[address]

        task.add_done_callback(ended)
        return client


class _Client:
    """One client's datagrams, and the stream they go on."""

    def __init__(self, relay: UdpRelay, address: _Address) -> None:
        self.task: asyncio.Task[None] | None = None
        self._relay = relay
        self._address = address
        self._early: list[bytes] = []
        self._stream: Stream | None = None
        self._idle = asyncio.timeout(_IDLE_S)

    def send(self, data: bytes) -> None:
        """Send a datagram to the guest; one that there is no room for is lost."""
        if self._stream is None:
            if len(self._early) < _MAX_EARLY:
                self._early.append(data)
        elif self._stream.unsent_bytes < MAX_UNSENT_BYTES:
            self._active()
            try:
                self._stream.write_nowait(frame(data))
            except LinkError:
                self.end()

    def end(self) -> None:
        """Forget the client."""
        if self.task is not None:
            self.task.cancel()

    async def run(self, open_stream: OpenStream, wanted: Wanted) -> None:
        """Pass on what comes back, until neither side has said anything for long."""
        try:
            async with self._idle:
                stream = self._stream = await open_stream(wanted.target)
                try:
                    for data in self._early:
                        self.send(data)
                    splitter = Splitter()
                    while data := await stream.read():
                        self._active()
                        for datagram in splitter.feed(data):
                            self._relay.send(datagram, self._address)
                finally:
                    self._stream = None
                    stream.abort("the client is gone")
        except (ArcboxError, TimeoutError) as error:
            _log.debug("datagrams of %s end: %s", wanted, error or "idle")

    def _active(self) -> None:
        if not self._idle.expired():
            self._idle.reschedule(asyncio.get_running_loop().time() + _IDLE_S)
