"""TCP forwards over the link: the daemon listens, and each connection is a stream of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Awaitable, Callable

from arcboxd import aio
from arcboxd.errors import ArcboxError
from arcboxd.link.pump import pump
from arcboxd.link.stream import Stream
from arcboxd.ports.plan import Wanted
from arcboxd.ports.sockets import listen, taken

_log = logging.getLogger(__name__)

_OPEN_S = 10.0
_BACKLOG = 128
_PAUSE_S = 0.5
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)

OpenStream = Callable[[str], Awaitable[Stream]]
"""Opens a stream to a target in the guest; raises LinkError."""


class Slots:
    """How many streams of one machine's link all its forwards together may use."""

    def __init__(self, limit: int) -> None:
        """Leave the rest of the link to others."""
        self._free = limit

    def take(self) -> bool:
        """Take one, if there is one; whoever took it gives it back."""
        if not self._free:
            return False
        self._free -= 1
        return True

    def give_back(self) -> None:
        """Give one back."""
        self._free += 1


class TcpRelay:
    """A listener of the host, whose connections reach a target in the guest."""

    def __init__(self, wanted: Wanted, open_stream: OpenStream, slots: Slots) -> None:
        """Prepare; `open` begins."""
        self._wanted = wanted
        self._open_stream = open_stream
        self._slots = slots
        self._listener: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen.

        Raises:
            NoRoomError: The port is taken.
            PreconditionError: This host cannot open it.
        """
        sock = listen(self._wanted)
        try:
            sock.listen(_BACKLOG)
        except OSError as error:
            # Two sockets may be bound to one port, but only one of them listens.
            sock.close()
            raise taken(self._wanted) from error
        self._listener = aio.spawn(self._listen(sock), name=f"listen on {self._wanted}")

    async def close(self) -> None:
        """Listen no more, and break off what goes on. Idempotent."""
        for task in (self._listener, *self._connections):
            if task is not None:
                await aio.cancel(task)

    async def _listen(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.closing(sock):
            while True:
                try:
                    connection, _ = await loop.sock_accept(sock)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                except OSError as error:
                    # Those who wait stay in the backlog meanwhile.
                    _log.warning("no connections to %s for now: %s", self._wanted, error)
                    await asyncio.sleep(_PAUSE_S)
                    continue
                self._accept(connection)

    def _accept(self, connection: socket.socket) -> None:
        if not self._slots.take():
            _log.warning("%s: too many connections to this machine", self._wanted)
            _refuse(connection)
            return
        task = aio.spawn(self._serve(connection), name=f"connection to {self._wanted}")
        self._connections.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._slots.give_back()

    async def _serve(self, connection: socket.socket) -> None:
        with contextlib.closing(connection):
            try:
                async with asyncio.timeout(_OPEN_S):
                    stream = await self._open_stream(self._wanted.target)
            except (ArcboxError, TimeoutError) as error:
                _log.debug("no connection from %s: %s", self._wanted, error)
                _refuse(connection)
                return
            await pump(stream, connection)


def _refuse(connection: socket.socket) -> None:
    """Reset a connection, as a host does where nobody listens."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
    connection.close()
