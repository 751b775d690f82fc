"""One end of the link: sessions that come and go, and streams over the present one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from arcboxd.errors import LinkError
from arcboxd.link.mux import MAX_STREAMS, Handler, Mux
from arcboxd.link.session import Session
from arcboxd.link.stream import Stream
from arcboxd.link.transport import StreamTransport

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Handler", "Peer", "Stream", "StreamTransport", "refuse_all"]


def refuse_all(target: str) -> Handler:
    """Refuse every stream; the `accept` of an end that only opens them."""
    raise LinkError(f"this end of the link serves nothing, so not {target!r}")


class Peer:
    """One end of the link over one port; give `protocol` to a transport.

    On the host: `loop.create_unix_connection(lambda: peer.protocol, path)`. In the guest:
    `guest_port.open_port(path, lambda: peer.protocol)`. When the connection is lost, make another
    with the same Peer or a new one.

    Attributes:
        on_hello: Called with what the peer says when it begins a handshake, before the session
            stands; a second time when its HELLO was repeated.
        on_session: Called when a session begins; `open` works from then on. No callback may raise.
        on_lost: Called when a session ends, with the reason; its streams are reset already.
        session_count: How many sessions there were, the present one included.
    """

    def __init__(
        self,
        *,
        role: str,
        hello: bytes = b"",
        accept: Callable[[str], Handler] = refuse_all,
        keepalive_s: float = 0,
        max_streams: int = MAX_STREAMS,
        frozen: int = 0,
    ) -> None:
        """Make an end that is not connected yet.

        Args:
            role: "host" or "guest".
            hello: What the peer finds in its `peer_hello`, at most 1024 bytes.
            accept: Returns the handler for a target that the peer opens a stream to, or raises
                LinkError to refuse it. A handler that raises an ArcboxError before it uses its
                stream refuses as well; afterwards it resets the stream.
            keepalive_s: Seconds of silence after which to ask whether the peer is there, up to
                three
                times, before the session ends; 0 never asks. For the host.
            max_streams: How many streams each end may have open at a time.
            frozen: The `mark` of the session that the peer was frozen in, if it goes on from there:
                then a session stands as soon as there is a connection.

        Raises:
            ValueError: The role or the hello is not allowed.
        """
        self.on_hello: Callable[[bytes], None] | None = None
        self.on_session: Callable[[], None] | None = None
        self.on_lost: Callable[[str], None] | None = None
        self.session_count = 0
        self._is_host = role == "host"
        self._accept = accept
        self._max_streams = max_streams
        self._mux: Mux | None = None
        self._closed = False
        self._gone = asyncio.Event()
        self._waiters: set[asyncio.Future[None]] = set()
        self._session = Session(
            self, role=role, hello=hello, keepalive_s=keepalive_s, frozen=frozen
        )

    @property
    def protocol(self) -> Session:
        """The asyncio.Protocol for the transport; always the same."""
        return self._session

    @property
    def peer_hello(self) -> bytes:
        """The `hello` of the peer in the present or last session."""
        return self._session.peer_hello

    @property
    def mark(self) -> int:
        """See `Session.mark`."""
        return self._session.mark

    @property
    def version(self) -> int:
        """The protocol version of the present or last session."""
        return self._session.version

    @property
    def is_up(self) -> bool:
        """Whether a session stands."""
        return self._mux is not None

    @property
    def stream_count(self) -> int:
        """How many streams are open."""
        return self._mux.stream_count if self._mux is not None else 0

    async def wait_session(self) -> None:
        """Wait until a session stands; set a deadline around it.

        Raises:
            LinkError: The connection was lost, the link was closed, or the peer speaks no version
                of ours.
        """
        if self._mux is None:
            if self._closed:
                raise LinkError("the link was closed")
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    def start(self, target: str) -> Stream:
        """Open a stream and return it at once; reading from it fails if the peer refuses it.

        Raises:
            LinkError: There is no session, or too many streams are open.
        """
        if self._mux is None:
            raise LinkError(f"the link has no session, so no stream to {target!r}")
        return self._mux.start(target)

    async def open(self, target: str) -> Stream:
        """Open a stream to a target of the peer; return it when the peer has accepted.

        Set a deadline around it. If it is cancelled, the stream is reset.

        Raises:
            LinkError: There is no session, it ended, the peer refused, or too many streams are
                open.
        """
        if self._mux is None:
            raise LinkError(f"the link has no session, so no stream to {target!r}")
        return await self._mux.open(target)

    async def closed(self) -> None:
        """Wait until the connection is lost, or closed by `close`."""
        await self._gone.wait()

    def close(self) -> None:
        """End the session, reset its streams and close the transport; idempotent and final."""
        self._closed = True
        self._session.close()
        self.disconnected()

    # --- the session's side ---------------------------------------------------------------------

    def connected(self) -> None:
        """Note that there is a transport."""
        self._gone.clear()

    def greeted(self, hello: bytes) -> None:
        """Pass on what the peer says."""
        if self.on_hello is not None:
            self.on_hello(hello)

    def session_up(self) -> None:
        """Begin with no streams."""
        self.session_count += 1
        self._mux = Mux(
            self._session, self._accept, is_host=self._is_host, max_streams=self._max_streams
        )
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self.on_session is not None:
            self.on_session()

    def session_down(self, reason: str) -> None:
        """Reset all streams."""
        mux, self._mux = self._mux, None
        if mux is not None:
            mux.shut_down(reason)
        if self.on_lost is not None:
            self.on_lost(reason)

    def frame_received(self, kind: int, stream: int, payload: bytes) -> None:
        """Hand a frame to the mux."""
        if self._mux is not None:
            self._mux.frame_received(kind, stream, payload)

    def writable(self) -> None:
        """Let the mux go on sending."""
        if self._mux is not None:
            self._mux.writable()

    def session_failed(self, error: LinkError) -> None:
        """Tell all who wait for a session that there will be none with this peer."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)

    def disconnected(self) -> None:
        """Note that the transport is gone."""
        self._gone.set()
        self.session_failed(LinkError("the connection to the port was lost"))
