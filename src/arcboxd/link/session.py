"""One session at a time over a byte pipe whose ends do not see each other come and go.

Each end that has no session sends HELLO with a fresh random nonce and the nonce it last heard from
the peer, and repeats it until its own comes back. Whoever hears its own nonce knows that the peer
is there now and heard it: the session stands, READY tells the peer so, and data may follow at once.
That is one round trip for one end, one and a half for the other, whoever begins. None is needed
with a guest that was frozen in a session: who knows its nonce from then says HELLO with both, and
the session stands for either end as soon as that is said and heard.

A session's number is made of both nonces, and its frames are counted from 0 in each direction. So
no frame of an old session is ever taken for one of the new, and none is lost unseen: a gap, a wrong
checksum or any breach of the protocol ends the session, and a new handshake begins.

A HELLO or READY carries, after two nonces of 8 bytes (own, then the peer's or 0), one byte each for
the lowest and the highest protocol version and the role, and up to `MAX_HELLO` bytes for the
application. This frame and the header never change.

Handshake, numbering and keepalive change the same nonces, numbers and timer, hence one module.
"""

from __future__ import annotations

import asyncio
import logging
import os
from struct import Struct
from typing import TYPE_CHECKING

from arcboxd.errors import LinkError
from arcboxd.link.frames import (
    HELLO,
    PADDING,
    PING,
    PONG,
    READY,
    FrameReader,
    ProtocolError,
    encode,
)

if TYPE_CHECKING:
    from typing import Protocol

    class SessionUser(Protocol):
        """What a session tells the layer above it; none of these may raise but `frame_received`."""

        def connected(self) -> None:
            """A transport is there."""

        def greeted(self, hello: bytes) -> None:
            """The peer begins a handshake and says this; there is no session yet, or still one."""

        def session_up(self) -> None:
            """A session stands: `Session.send` works from now on."""

        def session_down(self, reason: str) -> None:
            """The session is over; a new one may follow."""

        def frame_received(self, kind: int, stream: int, payload: bytes) -> None:
            """A frame of the session came, in order; ProtocolError ends the session."""

        def writable(self) -> None:
            """The transport takes data again after it was congested."""

        def session_failed(self, error: LinkError) -> None:
            """The peer is there, but no session with it is possible."""

        def disconnected(self) -> None:
            """The transport is gone."""


VERSION_MIN = 1
VERSION_MAX = 1
MAX_HELLO = 1024
ROLES = {"host": 1, "guest": 2}
_HELLO = Struct(">QQBBB")
_BATCH_BYTES = 1 << 16
_CONGESTED_BYTES = 1 << 16
_OVERRUN_BYTES = 1 << 20
_RETRY_S = 0.25
_GO_ON_S = 10.0
_RETRY_MAX_S = 4.0
_ATTEMPTS = 64  # then the padding and the short intervals come round again
_MISSED_PINGS = 3

_log = logging.getLogger(__name__)


class Session(asyncio.Protocol):
    """The lowest layer of the link: give it to a transport, and it keeps a session with the peer.

    Attributes:
        is_up: A session stands.
        congested: The transport holds enough unsent bytes; send no data until
            `SessionUser.writable`. version: The protocol version of the session, the highest that
            both ends speak. peer_hello: The application's bytes in the peer's HELLO.
    """

    def __init__(
        self,
        user: SessionUser,
        *,
        role: str,
        hello: bytes,
        keepalive_s: float = 0,
        versions: tuple[int, int] = (VERSION_MIN, VERSION_MAX),
        frozen: int = 0,
    ) -> None:
        """Make a session layer that waits for `connection_made`.

        Args:
            user: Hears of sessions and frames.
            role: "host" or "guest"; the peer's must be the other.
            hello: Bytes for the peer's application, at most `MAX_HELLO`.
            keepalive_s: Seconds of silence after which to ask whether the peer is there; 0 never
                asks.
            versions: The lowest and highest protocol version to offer.
            frozen: The `mark` of the session that the peer was frozen in, if it goes on from there.

        Raises:
            ValueError: The role is neither, or the hello is too long.
        """
        if role not in ROLES or len(hello) > MAX_HELLO:
            raise ValueError(
                f"role must be one of {sorted(ROLES)}, hello at most {MAX_HELLO} bytes"
            )
        self.is_up = False
        self.congested = False
        self.version = 0
        self.peer_hello = b""
        self._user = user
        self._role = ROLES[role]
        self._hello = hello
        self._versions = versions
        self._keepalive_s = keepalive_s
        self._frozen = frozen
        self._transport: asyncio.WriteTransport | None = None
        self._reader = FrameReader()
        self._nonce = self._peer_nonce = self._number = 0
        self._sequence_out = self._sequence_in = 0
        self._batch: list[bytes | memoryview] = []
        self._batch_bytes = 0
        self._flush_later: asyncio.Handle | None = None
        self._receiving = False
        self._closed = False
        self._answer_due = False
        self._attempt = 0
        self._greeted_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self._heard = False
        self._missed = 0

    @property
    def mark(self) -> int:
        """What lets a later host go on at once with a guest that is frozen now; 0 without session.

        It must have been kept by both ends: no byte may be on its way.
        """
        return self._peer_nonce if self.is_up else 0

    # --- the transport's side -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake on a new transport, dropping whatever the last one left behind."""
        if not isinstance(transport, asyncio.WriteTransport):
            raise TypeError(f"the link needs a transport it can write to, not {transport!r}")
        if self._closed:
            transport.abort()
            return
        self._leave("the port was connected again")
        self._user.connected()
        transport.set_write_buffer_limits(high=_CONGESTED_BYTES)
        self._transport = transport
        self.congested = False
        self._greeted_at = float("-inf")
        self._reader = FrameReader()
        frozen, self._frozen = self._frozen, 0
        if frozen:
            self._go_on(frozen)
        else:
            self._greet()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the session and wait for the next `connection_made`."""
        self._leave(f"the port was disconnected{f': {exc}' if exc else ''}")
        self._transport = None
        self._user.disconnected()

    def link_down(self) -> None:
        """Hear from a guest's port that the host is gone: end the session, keep the transport."""
        self._leave("the host disconnected from the port")

    def link_up(self) -> None:
        """Hear from a guest's port that a host is there: begin a handshake."""
        if self._transport is not None:
            self.connection_made(self._transport)

    def pause_writing(self) -> None:
        """Note that the transport is full."""
        self.congested = True

    def resume_writing(self) -> None:
        """Let the layer above go on writing."""
        self.congested = False
        if self.is_up:
            self._user.writable()

    def data_received(self, data: bytes) -> None:
        """Handle every frame that is complete, at once, and send all answers in one write."""
        reader = self._reader
        reader.feed(data)
        self._receiving = True
        try:
            while (frame := reader.next_frame()) is not None:
                if reader.damaged:
                    self._damage()
                self._frame(*frame)
            if reader.damaged:
                self._damage()
            if self._answer_due:
                self._answer_due = False
                self._greeting(READY if self.is_up else HELLO)
        finally:
            self._receiving = False
            self._flush()

    # --- the user's side ------------------------------------------------------------------------

    def send(self, kind: int, stream: int = 0, payload: bytes | memoryview = b"") -> None:
        """Send a frame of the session, together with what else is sent in this turn of the loop.

        The payload has at most `MAX_PAYLOAD` bytes. Data must wait while `congested`; other frames
        need not, but a peer that lets 1 MiB pile up loses its session. Does nothing without a
        session.
        """
        if self.is_up:
            number = self._sequence_out
            self._sequence_out = (number + 1) & 0xFFFFFFFF
            self._put(encode(kind, stream, number, self._number, payload), payload)

    def end(self, reason: str) -> None:
        """End the session, if one stands, and begin a new handshake."""
        if self.is_up:
            # A hostile peer can break session after session: that must not fill the log either.
            quiet = asyncio.get_running_loop().time() - self._greeted_at < _RETRY_S
            _log.log(logging.DEBUG if quiet else logging.WARNING, "link session ended: %s", reason)
            self._leave(reason)
            self._greet()

    def close(self) -> None:
        """End the session and close the transport; what was sent still goes out. Idempotent."""
        self._closed = True
        self._flush()
        self._leave("the link was closed")
        if self._transport is not None:
            self._transport.close()

    # --- handshake ------------------------------------------------------------------------------

    def _greet(self, *, answer: bool = False) -> None:
        """Begin a handshake: by an answer to the HELLO just read, or else by our own."""
        self._nonce = _fresh_nonce()
        self._attempt = 0
        now = asyncio.get_running_loop().time()
        if answer:
            self._answer_due = True
        elif now - self._greeted_at >= _RETRY_S:
            # Sessions that break as soon as they stand must not make a storm of handshakes.
            self._greeted_at = now
            self._greeting(HELLO)
        self._retry_later()

    def _go_on(self, mark: int) -> None:
        """Begin a session at once with a peer that was frozen in one, and look whether it does."""
        self._nonce = _fresh_nonce()
        self._peer_nonce = mark
        self._greeting(HELLO)
        self.version = self._versions[1]
        self._enter(READY)
        if self.is_up:
            self._cancel_timer()
            self._timer = asyncio.get_running_loop().call_later(_GO_ON_S, self._gone_on)

    def _gone_on(self) -> None:
        if not self._heard:
            self.end("the peer does not go on from where it was frozen")
        elif self._keepalive_s:
            self._keepalive()

    def _burst(self) -> None:
        """Send HELLO so that a peer gets it which waits for the rest of a frame it read half of.

        The first copy is for the usual case: it need not wait for the padding to be read.
        """
        self._greeting(HELLO)
        self._put(PADDING)
        self._greeting(HELLO)

    def _retry_later(self) -> None:
        delay = min(_RETRY_S * 2**self._attempt, _RETRY_MAX_S)
        self._timer = asyncio.get_running_loop().call_later(delay, self._retry)

    def _retry(self) -> None:
        self._attempt = (self._attempt + 1) % _ATTEMPTS
        # While the peer does not even empty the pipe, what it has not read is enough.
        if self._transport is not None and not self._transport.get_write_buffer_size():
            # Padding rarely helps twice, and a guest that boots reads all that was queued.
            if (self._attempt & (self._attempt + 1)) == 0:
                self._burst()
            else:
                self._greeting(HELLO)
        self._retry_later()

    def _greeting(self, kind: int) -> None:
        transport = self._transport
        if transport is None or transport.get_write_buffer_size() > _CONGESTED_BYTES:
            return
        low, high = self._versions
        payload = _HELLO.pack(self._nonce, self._peer_nonce, low, high, self._role) + self._hello
        self._put(encode(kind, 0, 0, 0, payload), payload)

    def _greeted(self, kind: int, payload: bytes) -> None:
        """Handle HELLO or READY."""
        if len(payload) < _HELLO.size or len(payload) > _HELLO.size + MAX_HELLO:
            raise ProtocolError("a greeting has the wrong size")
        nonce, echo, low, high, role = _HELLO.unpack_from(payload)
        if role == self._role:
            return  # Our own, sent back by whatever is at the other end.
        if kind == HELLO:
            self._user.greeted(payload[_HELLO.size :])
        if self.is_up and (kind == READY or nonce == self._peer_nonce):
            # An answer to its HELLO is due if it did not get our READY yet.
            self._answer_due |= kind == HELLO
            self._heard |= nonce == self._peer_nonce
            return
        if self.is_up:
            self._leave("the peer began a new session")
            self._peer_nonce = nonce
            if echo != self._nonce:
                self._greet(answer=True)
                return
            # It has known ours all the time: we were frozen in a session, and go on.
        if echo != self._nonce:
            # Perhaps from a peer that is gone. If not, it answers our nonce.
            if kind == HELLO:
                self._peer_nonce = nonce
                self._answer_due = True
        elif (version := min(high, self._versions[1])) < max(low, self._versions[0]):
            self._peer_nonce = nonce
            self._user.session_failed(
                LinkError(
                    f"the other end of the link speaks versions {low} to {high} of its protocol, "
                    f"this one {self._versions[0]} to {self._versions[1]}",
                    hint="restart the machine, so that it gets the agent of this version",
                )
            )
        else:
            self._peer_nonce = nonce
            self.version = version
            self.peer_hello = payload[_HELLO.size :]
            self._enter(kind)

    def _enter(self, kind: int) -> None:
        self._answer_due = False
        if kind == HELLO:
            self._greeting(READY)
        self._number = self._nonce ^ self._peer_nonce
        self._sequence_out = self._sequence_in = 0
        self.is_up = True
        self._cancel_timer()
        if self._keepalive_s:
            self._missed = 0
            self._timer = asyncio.get_running_loop().call_later(self._keepalive_s, self._keepalive)
        self._user.session_up()

    def _leave(self, reason: str) -> None:
        """Forget the session and all that is not yet handed to the transport; send nothing more."""
        self._cancel_timer()
        self._answer_due = False
        self._batch.clear()
        self._batch_bytes = 0
        self._peer_nonce = 0
        if self.is_up:
            self.is_up = False
            self._user.session_down(reason)

    # --- frames ---------------------------------------------------------------------------------

    def _frame(self, kind: int, stream: int, sequence: int, session: int, payload: bytes) -> None:
        try:
            if kind <= READY:
                self._greeted(kind, payload)
            elif self.is_up and session == self._number:
                if sequence != self._sequence_in:
                    self.end("a frame is missing")
                    return
                self._sequence_in = (sequence + 1) & 0xFFFFFFFF
                # Bytes alone are no sign of life: half a frame would swallow them for long.
                self._heard = True
                if kind > PONG:
                    self._user.frame_received(kind, stream, payload)
                elif kind == PING:
                    self.send(PONG)
        except ProtocolError as error:
            self.end(error.message)

    def _damage(self) -> None:
        self._reader.damaged = False
        self.end("bytes were damaged or lost on the way")

    def _put(self, *parts: bytes | memoryview) -> None:
        self._batch += parts
        for part in parts:
            self._batch_bytes += len(part)
        if self._batch_bytes >= _BATCH_BYTES:
            self._flush()
        elif not self._receiving and self._flush_later is None:
            self._flush_later = asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        if self._flush_later is not None:
            self._flush_later.cancel()
            self._flush_later = None
        if not self._batch or self._transport is None:
            return
        data = b"".join(self._batch)
        self._batch.clear()
        self._batch_bytes = 0
        self._transport.write(data)
        if self.is_up and self._transport.get_write_buffer_size() > _OVERRUN_BYTES:
            # Not at once: the caller may be in the middle of a stream's data.
            asyncio.get_running_loop().call_soon(self.end, "the peer does not read")

    # --- keepalive ------------------------------------------------------------------------------

    def _keepalive(self) -> None:
        self._missed = 0 if self._heard else self._missed + 1
        self._heard = False
        if self._missed > _MISSED_PINGS:
            self.end("the peer does not answer")
            return
        if self._missed:
            self.send(PING)
        self._timer = asyncio.get_running_loop().call_later(self._keepalive_s, self._keepalive)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _fresh_nonce() -> int:
    return int.from_bytes(os.urandom(8), "big") or 1
