"""Many streams over one session, after the yamux specification, with named targets.

Streams are numbered by their opener: odd by the host, even by the guest, each number once in a
session. OPEN carries the target; ACCEPT or REFUSE (with a reason) answers it. DATA uses up the
window that WINDOW enlarges; FIN half-closes; STOP asks the peer to send no more, and is answered
with FIN; RESET ends both ways.

Source: https://github.com/hashicorp/yamux/blob/master/spec.md for windows and half-close. Ours
    differs in the explicit answer to OPEN, and in STOP, which spares data on its way back that a
    reset would destroy.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from arcboxd.aio import spawn
from arcboxd.errors import ArcboxError, LinkError
from arcboxd.link.frames import OPEN, REFUSE, ProtocolError
from arcboxd.link.stream import MAX_REASON, Stream

if TYPE_CHECKING:
    from arcboxd.link.session import Session

__all__ = ["MAX_STREAMS", "MAX_TARGET", "Handler", "Mux", "Stream"]

Handler = Callable[[Stream], Awaitable[None]]
"""Serves one stream that the peer opened; it is cancelled when the session ends."""

MAX_STREAMS = 1024
MAX_TARGET = 512
_ROOMY_BYTES = 16 << 20
_LAST_NUMBER = (1 << 32) - 1


class Mux:
    """The streams of one session; it ends with the session.

    Attributes:
        buffered_bytes: Bytes received on all streams and not yet read.
    """

    def __init__(
        self,
        session: Session,
        accept: Callable[[str], Handler],
        *,
        is_host: bool,
        max_streams: int = MAX_STREAMS,
    ) -> None:
        """Make the mux of a session that just began.

        Args:
            session: Sends the frames.
            accept: Returns the handler for a target, or raises LinkError to refuse it.
            is_host: Whether this end is the host's.
            max_streams: How many streams each end may have open at a time.
        """
        self.buffered_bytes = 0
        self._session: Session | None = session
        self._accept = accept
        self._max_streams = max_streams
        self._streams: dict[int, Stream] = {}
        self._next_number = 1 if is_host else 2
        self._opened = 0
        self._last_remote = 0 if is_host else -1
        self._serving: dict[Stream, asyncio.Task[None]] = {}
        self._waiting: deque[Stream] = deque()

    @property
    def is_roomy(self) -> bool:
        """Whether little enough is buffered that streams may have larger windows."""
        return self.buffered_bytes < _ROOMY_BYTES

    @property
    def stream_count(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    def start(self, target: str) -> Stream:
        """Open a stream without waiting for the peer to accept: until then it can be written to.

        Raises:
            LinkError: There are too many, the target is too long, or the session ended.
        """
        if not target or len(target.encode()) > MAX_TARGET:
            raise LinkError(f"a target has 1 to {MAX_TARGET} bytes, not {len(target.encode())}")
        if self._session is None:
            raise LinkError("the link has no session")
        if self._opened >= self._max_streams:
            raise LinkError(f"{self._max_streams} streams of the link are already in use")
        if self._next_number > _LAST_NUMBER:
            self._session.end("the stream numbers are used up")
            raise LinkError("the link had to begin a new session")
        stream = Stream(self, self._next_number, target, remote=False)
        self._next_number += 2
        self._streams[stream.number] = stream
        self._opened += 1
        stream.begin()
        return stream

    async def open(self, target: str) -> Stream:
        """Open a stream; return it when the peer has accepted.

        If it is cancelled, the stream is reset.

        Raises:
            LinkError: As for `start`, or the peer refused it.
        """
        stream = self.start(target)
        await stream.opened()
        return stream

    def shut_down(self, reason: str) -> None:
        """Reset every stream, because the session ended, and cancel what serves the peer's."""
        self._session = None
        self._waiting.clear()
        error = LinkError(f"the session of the link ended: {reason}")
        for stream in list(self._streams.values()):
            stream.fail(error)
        for task in list(self._serving.values()):
            task.cancel()

    # --- the session's side ---------------------------------------------------------------------

    def frame_received(self, kind: int, number: int, payload: bytes) -> None:
        """Handle a frame of the session.

        Raises:
            ProtocolError: The peer broke the protocol.
        """
        stream = self._streams.get(number)
        if stream is not None:
            stream.frame(kind, payload)
        elif kind == OPEN:
            self._opened_by_peer(number, payload)
        elif (number - self._next_number) % 2:
            if number > self._last_remote:
                raise ProtocolError(f"stream {number} was never opened")
        elif number >= self._next_number:
            raise ProtocolError(f"stream {number} was never opened")
        # Else it is closed here, and the peer did not know when it sent this.

    def writable(self) -> None:
        """Go on sending, one frame of each waiting stream in turn."""
        waiting = self._waiting
        while waiting and self._session is not None and not self._session.congested:
            stream = waiting.popleft()
            stream.queued = False
            if stream.can_send:
                stream.send_some()
                self._enqueue(stream)

    # --- the streams' side ----------------------------------------------------------------------

    def send(self, kind: int, number: int, payload: bytes | memoryview) -> None:
        """Send a frame, unless the session is over."""
        if self._session is not None:
            self._session.send(kind, number, payload)

    def ready(self, stream: Stream) -> None:
        """Send what a stream has, at once if no other waits, else in its turn."""
        if not self._waiting:
            while self._session is not None and stream.can_send and not self._session.congested:
                stream.send_some()
        self._enqueue(stream)

    def finished(self, stream: Stream) -> None:
        """Forget a stream if it is closed; frames that still come for it are ignored."""
        if stream.is_closed and self._streams.pop(stream.number, None) is not None:
            self._opened -= not stream.is_remote

    # --- inside ---------------------------------------------------------------------------------

    def _enqueue(self, stream: Stream) -> None:
        if stream.can_send and not stream.queued and self._session is not None:
            stream.queued = True
            self._waiting.append(stream)

    def _opened_by_peer(self, number: int, payload: bytes) -> None:
        if number <= self._last_remote or (number - self._last_remote) % 2:
            raise ProtocolError(f"stream {number} was opened out of order")
        self._last_remote = number
        try:
            target, handler = self._handler(payload)
        except (LinkError, UnicodeDecodeError) as error:
            self.send(REFUSE, number, str(error).encode(errors="replace")[:MAX_REASON])
            return
        stream = Stream(self, number, target, remote=True)
        self._streams[number] = stream
        self._serving[stream] = spawn(self._serve(handler, stream), name=f"link to {target}")

    def _handler(self, payload: bytes) -> tuple[str, Handler]:
        if not payload or len(payload) > MAX_TARGET:
            raise LinkError(f"a target has 1 to {MAX_TARGET} bytes")
        # A stream that is closed counts until its handler is done.
        if len(self._serving) >= self._max_streams:
            raise LinkError("too many streams are open")
        target = payload.decode()
        return target, self._accept(target)

    async def _serve(self, handler: Handler, stream: Stream) -> None:
        reason = "its handler was cancelled"
        try:
            await handler(stream)
            await stream.close_write()
            stream.stop_reading()
        except ArcboxError as error:
            reason = error.message
        except Exception:
            reason = "the handler failed"
            raise
        finally:
            stream.abort(reason)
            del self._serving[stream]
