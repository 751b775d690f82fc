"""The link to one guest's agent, held while its machine lives, and served as ``agent.sock``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from arcboxd import aio
from arcboxd.errors import LinkError
from arcboxd.link.call import CALL, HELLO, Call
from arcboxd.link.peer import Peer, Stream
from arcboxd.link.pump import pump
from arcboxd.listener import Listener

_log = logging.getLogger(__name__)

TARGET = "grpc"
"""The mux target of the agent's gRPC server."""
PING = "ping"
"""The mux target that answers with the agent's version."""
CLOCK = "clock"
"""The mux target that sets the guest's clock."""
_VERSION_BYTES = 64
_CLOCK_S = 10.0
_TIME_BYTES = 8
_EXCHANGES = 5
_NEAR_NS = 10_000_000
_RETRY_FIRST_S = 0.02
_RETRY_MOST_S = 1.0
_KEEPALIVE_S = 20.0
_OPEN_S = 10.0
_MAX_CLIENTS = 128


class AgentLink:
    """Holds a session with an agent, and connects clients of a unix socket to its gRPC server."""

    def __init__(
        self,
        name: str,
        link_socket: Path,
        agent_socket: Path,
        on_session: Callable[[], Awaitable[None]],
        on_lost: Callable[[], None],
        *,
        hello: bytes = HELLO,
        frozen: int = 0,
    ) -> None:
        """Prepare; `open` begins.

        Args:
            name: The machine's, for the log.
            link_socket: The host's end of the virtio-serial port.
            agent_socket: Where clients of the agent connect.
            on_session: Run in a task of its own for each session; cancelled when the session ends.
            on_lost: Called when a session ends.
            hello: What to say when a session begins.
            frozen: The `mark` of the session that the guest was frozen in, if it goes on from one.
        """
        self._name = name
        self._link_socket = link_socket
        self._on_session = on_session
        self._on_lost = on_lost
        self._hello = hello
        self._frozen = frozen
        self._peer: Peer | None = None
        self._listener = Listener(agent_socket, self._accept)
        self._agent_socket = agent_socket
        self._keeper: asyncio.Task[None] | None = None
        self._greeter: asyncio.Task[None] | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Serve the socket, and begin to connect.

        Raises:
            LinkError: The socket cannot be made.
        """
        try:
            self._listener.open()
        except OSError as error:
            raise LinkError(f"cannot serve {self._agent_socket}: {error}") from error
        self._keeper = aio.spawn(self._keep(), name=f"link to {self._name}")

    async def close(self) -> None:
        """End the session and whatever is served. Idempotent."""
        self._listener.close(unlink=True)
        for task in (self._keeper, self._greeter, *self._clients):
            if task is not None:
                await aio.cancel(task)
        self._keeper = self._greeter = None

    def call(self, path: str) -> Call:
        """Begin a call of an agent's method, by the method's path.

        Raises:
            LinkError: There is no session.
        """
        if self._peer is None:
            raise LinkError(f"there is no link to the agent of machine {self._name!r}")
        return Call(self._peer.start(CALL + path))

    async def open_stream(self, target: str) -> Stream:
        """Open a stream to a target of the guest's; set a deadline around it.

        Raises:
            LinkError: There is no session, it broke, or the guest refused.
        """
        if self._peer is None:
            raise LinkError(f"there is no link to the agent of machine {self._name!r}")
        return await self._peer.open(target)

    @property
    def mark(self) -> int:
        """What a host needs to go on with a clone of the guest; see `Session.mark`."""
        return self._peer.mark if self._peer is not None else 0

    async def ping(self) -> str:
        """Ask the agent for its version, in one round trip.

        Raises:
            LinkError: There is no session, it broke, or the agent is too old to know this.
        """
        if self._peer is None:
            raise LinkError(f"there is no link to the agent of machine {self._name!r}")
        stream = await self._peer.open(PING)
        try:
            return (await stream.read(_VERSION_BYTES)).decode(errors="replace")
        finally:
            stream.abort()

    async def sync_clock(self) -> None:
        """Set the guest's clock to ours, if it is off by more than 10 ms; a failure is logged.

        A time is late by its way to the guest. So what is slow for being the first is only asked
        for, and further times are sent ahead by half of the best round trip so far.
        """
        try:
            async with asyncio.timeout(_CLOCK_S):
                await self._sync_clock()
        except (LinkError, TimeoutError) as error:
            _log.info("the clock of %s was not adjusted: %s", self._name, error or "no answer")

    async def _sync_clock(self) -> None:
        if self._peer is None:
            raise LinkError(f"there is no link to the agent of machine {self._name!r}")
        stream = self._peer.start(CLOCK)
        try:
            await _exchange(stream, 0)
            ahead_ns, best_ns = 0, 0
            for _ in range(_EXCHANGES):
                took_ns = await _exchange(stream, time.time_ns() + ahead_ns)
                if abs(took_ns // 2 - ahead_ns) <= _NEAR_NS:
                    return
                best_ns = min(best_ns or took_ns, took_ns)
                ahead_ns = best_ns // 2
        finally:
            stream.abort("the clock is set")

    async def _keep(self) -> None:
        delay_s = _RETRY_FIRST_S
        while True:
            try:
                sessions = await self._connection()
            except OSError as error:
                # QEMU takes one client at a time, and listens again once it has seen the last go.
                _log.debug("no connection to the port of %s: %s", self._name, error)
                sessions = 0
            delay_s = _RETRY_FIRST_S if sessions else min(delay_s * 2, _RETRY_MOST_S)
            await asyncio.sleep(delay_s)

    async def _connection(self) -> int:
        """Use one connection to the port until it is lost; tell how many sessions it had."""
        frozen, self._frozen = self._frozen, 0
        peer = Peer(role="host", hello=self._hello, keepalive_s=_KEEPALIVE_S, frozen=frozen)
        peer.on_session = self._session_up
        peer.on_lost = self._session_down
        loop = asyncio.get_running_loop()
        # Before the connection: a session may stand as soon as that does.
        self._peer = peer
        try:
            await loop.create_unix_connection(lambda: peer.protocol, str(self._link_socket))
            await peer.closed()
        finally:
            self._peer = None
            peer.close()
        return peer.session_count

    def _session_up(self) -> None:
        if self._greeter is not None:
            self._greeter.cancel()
        self._greeter = aio.spawn(self._greet(), name=f"session of {self._name}")

    def _session_down(self, reason: str) -> None:
        _log.info("session with the agent of %s ended: %s", self._name, reason)
        if self._greeter is not None:
            self._greeter.cancel()
        self._on_lost()

    async def _greet(self) -> None:
        await self._on_session()

    def _accept(self, client: socket.socket) -> None:
        if len(self._clients) >= _MAX_CLIENTS:
            client.close()
            return
        task = aio.spawn(self._serve(client), name=f"client of {self._name}")
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, client: socket.socket) -> None:
        with contextlib.closing(client):
            try:
                async with asyncio.timeout(_OPEN_S):
                    if self._peer is None:
                        return
                    stream = await self._peer.open(TARGET)
            except (LinkError, TimeoutError) as error:
                _log.debug("no stream to the agent of %s: %s", self._name, error)
                return
            await pump(stream, client)


async def _exchange(stream: Stream, unix_nanos: int) -> int:
    """Send a time, and take the guest's; return how many nanoseconds that took."""
    began_ns = time.monotonic_ns()
    await stream.write(unix_nanos.to_bytes(_TIME_BYTES, "big", signed=True))
    received = 0
    while received < _TIME_BYTES:
        piece = await stream.read(_TIME_BYTES - received)
        if not piece:
            raise LinkError("the agent gave no time")
        received += len(piece)
    return time.monotonic_ns() - began_ns
