"""One stream of the mux: bytes both ways, each with its window and its end, and reset.

Reading, writing, windows and ends are one state machine, hence one module.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from arcboxd.errors import LinkError
from arcboxd.link.frames import (
    ACCEPT,
    DATA,
    FIN,
    MAX_PAYLOAD,
    OPEN,
    REFUSE,
    RESET,
    STOP,
    WINDOW,
    ProtocolError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from arcboxd.link.mux import Mux

    class StreamReceiver(Protocol):
        """Takes what a stream brings, called from the frame handler; none of these may raise."""

        def stream_data(self, data: bytes) -> None:
            """Bytes came."""

        def stream_eof(self) -> None:
            """The peer writes no more."""

        def stream_drained(self) -> None:
            """`Stream.unsent_bytes` became smaller."""

        def stream_lost(self, error: LinkError) -> None:
            """The stream was reset."""


INITIAL_WINDOW = 1 << 16
"""Bytes that either end may send on a new stream before it hears of any that were read."""
FULL_WINDOW = 1 << 18
"""The window that a stream grows to once its reader has read half of the initial one."""
_MAX_CREDIT = 1 << 31
MAX_REASON = 256


class Stream:
    """A stream of bytes to a named target; made by `Peer.open` or given to a `Handler`.

    One task reads and any number write. A stream that its peer opened is accepted by the first use
    of it.

    Attributes:
        target: What was asked for, such as "grpc" or "tcp:127.0.0.1:80".
        on_failed: Called when the stream is reset or its session ends.
    """

    __slots__ = (
        "_allowance",
        "_buffer",
        "_buffered",
        "_credit",
        "_eaten",
        "_eof",
        "_eof_told",
        "_error",
        "_fin_due",
        "_fin_sent",
        "_id",
        "_mux",
        "_opening",
        "_out",
        "_paused",
        "_reader",
        "_receiver",
        "_remote",
        "_stopped",
        "_unaccepted",
        "_unsent",
        "_window",
        "_write_error",
        "_writers",
        "on_failed",
        "queued",
        "target",
    )

    def __init__(self, mux: Mux, number: int, target: str, *, remote: bool) -> None:
        """For the mux: make one end of stream `number`, which the peer opened if `remote`."""
        self.target = target
        self.on_failed: Callable[[], object] | None = None
        self.queued = False  # the mux's: it waits for its turn to send
        self._mux = mux
        self._id = number
        self._remote = remote
        self._unaccepted = remote
        self._opening: asyncio.Future[None] | None = None
        self._error: LinkError | None = None
        # Reading: the peer may send `_allowance` more; `_eaten` was read and not yet granted again.
        self._buffer: deque[bytes] = deque()
        self._buffered = 0
        self._window = INITIAL_WINDOW
        self._allowance = INITIAL_WINDOW
        self._eaten = 0
        self._eof = False
        self._eof_told = False
        self._stopped = False
        self._paused = False
        self._reader: asyncio.Future[None] | None = None
        self._receiver: StreamReceiver | None = None
        # Writing: we may send `_credit` more.
        self._out: deque[memoryview] = deque()
        self._unsent = 0
        self._credit = INITIAL_WINDOW
        self._fin_due = False
        self._fin_sent = False
        self._write_error: LinkError | None = None
        self._writers: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"<Stream {self._id} to {self.target!r}>"

    @property
    def is_closed(self) -> bool:
        """Whether both directions are finished, or the stream was reset."""
        return self._error is not None or ((self._eof or self._stopped) and self._fin_sent)

    @property
    def unsent_bytes(self) -> int:
        """Bytes written that wait for the peer's window or for the transport."""
        return self._unsent

    @property
    def buffered_bytes(self) -> int:
        """Bytes received and not yet read; never more than the window."""
        return self._buffered

    @property
    def is_stopped(self) -> bool:
        """Whether the peer reads no more; what it writes may go on."""
        return self._write_error is not None

    # --- reading --------------------------------------------------------------------------------

    async def read(self, limit: int = 65536) -> bytes:
        """Return the next bytes, at most `limit`, or b"" when the peer has half-closed.

        Cancelling it loses nothing.

        Raises:
            LinkError: The stream was reset, or its session ended.
        """
        if self._reader is not None:
            raise RuntimeError(f"another task reads {self}")
        self.accept()
        while not self._buffer:
            if self._error is not None:
                raise self._error
            if self._eof or self._stopped:
                return b""
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self._take(limit)

    def stop_reading(self) -> None:
        """Drop what was not read and tell the peer to send no more; idempotent."""
        if not self._stopped and self._error is None:
            self._stopped = True
            self._drop_input()
            _wake(self._reader)
            if not self._eof:
                self.accept()
                self._send(STOP)
                self._mux.finished(self)

    def set_receiver(self, receiver: StreamReceiver) -> None:
        """Deliver input by calls, first what has already come; `read` is not for such a stream."""
        self.accept()
        self._receiver = receiver
        self.resume_reading()
        if self._error is not None:
            receiver.stream_lost(self._error)

    def pause_reading(self) -> None:
        """Keep input back, within the window, instead of calling the receiver."""
        self._paused = True

    def resume_reading(self) -> None:
        """Call the receiver again, first with what was kept back."""
        self._paused = False
        while self._receiver is not None and self._buffer and not self._paused:
            self._receiver.stream_data(self._take(FULL_WINDOW))
        self._tell_eof()

    # --- writing --------------------------------------------------------------------------------

    async def write(self, data: bytes) -> None:
        """Send bytes, and wait until the peer's window and the transport have taken all of them.

        If it is cancelled, any part of the bytes may still be sent.

        Raises:
            LinkError: The stream was reset, its session ended, or the peer reads no more.
        """
        self.write_nowait(data)
        await self._drained()
        if (error := self._error or self._write_error) is not None:
            raise error

    def write_nowait(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes as far as possible and keep the rest; see `unsent_bytes`.

        Raises:
            LinkError: As for `write`.
        """
        if (error := self._error or self._write_error) is not None:
            raise error
        if self._fin_due:
            raise LinkError(f"the stream to {self.target!r} was closed for writing")
        self.accept()
        if data:
            self._out.append(memoryview(data if type(data) is bytes else bytes(data)))
            self._unsent += len(data)
            self._mux.ready(self)

    async def close_write(self) -> None:
        """Half-close: send what is left, then the end; idempotent, and quiet after a reset."""
        self.finish()
        await self._drained()

    def finish(self) -> None:
        """Half-close without waiting for what is left to be sent; idempotent."""
        if not self._fin_due and self._error is None:
            self.accept()
            self._fin_due = True
            self._finish_if_drained()

    def accept(self) -> None:
        """Tell the opener that its stream stands; the first read or write does so by itself."""
        if self._unaccepted:
            self._unaccepted = False
            self._send(ACCEPT)

    def abort(self, reason: str = "aborted") -> None:
        """Reset the stream: both ends get a LinkError with the reason; idempotent.

        A stream of the peer's that was not accepted yet is refused with the reason.
        """
        if self.is_closed:
            self._drop_input()
        else:
            kind = REFUSE if self._unaccepted else RESET
            self._send(kind, reason.encode(errors="replace")[:MAX_REASON])
            self.fail(LinkError(f"the stream to {self.target!r} was reset: {reason}"))

    # --- for the mux ----------------------------------------------------------------------------

    @property
    def number(self) -> int:
        """The stream's number in its session."""
        return self._id

    @property
    def is_remote(self) -> bool:
        """Whether the peer opened it."""
        return self._remote

    @property
    def can_send(self) -> bool:
        """Whether there is data that the peer's window has room for."""
        return self._unsent > 0 and self._credit > 0

    def begin(self) -> None:
        """Ask the peer for the stream."""
        self._send(OPEN, self.target.encode())

    async def opened(self) -> None:
        """Return when the peer has accepted; LinkError when it refuses."""
        self._opening = asyncio.get_running_loop().create_future()
        try:
            await self._opening
        except asyncio.CancelledError:
            self.abort("the opener gave up")
            raise

    def send_some(self) -> None:
        """Send one frame of data; only while `can_send`."""
        limit = min(MAX_PAYLOAD, self._credit)
        first = self._out.popleft()
        if len(first) > limit:
            self._out.appendleft(first[limit:])
            first = first[:limit]
        elif self._out and len(first) + len(self._out[0]) <= limit:
            # Many small writes that had to wait go in one frame.
            parts, size = [first], len(first)
            while self._out and size + len(self._out[0]) <= limit:
                parts.append(self._out.popleft())
                size += len(parts[-1])
            first = memoryview(b"".join(parts))
        self._credit -= len(first)
        self._unsent -= len(first)
        self._mux.send(DATA, self._id, first)
        if not self._unsent:
            while self._writers:
                _wake(self._writers.popleft())
        if self._receiver is not None:
            self._receiver.stream_drained()
        self._finish_if_drained()

    def frame(self, kind: int, payload: bytes) -> None:
        """Handle a frame for this stream."""
        if kind == DATA:
            self._data(payload)
        elif kind == WINDOW:
            self._credit += int.from_bytes(payload, "big")
            if len(payload) != 4 or self._credit > _MAX_CREDIT:  # noqa: PLR2004
                raise ProtocolError("a window is out of range")
            self._mux.ready(self)
        elif kind == FIN:
            self._end_input()
        elif kind == ACCEPT:
            _wake(self._opening)
        elif kind in (RESET, REFUSE):
            reason = payload[:MAX_REASON].decode(errors="replace") or "no reason given"
            verb = "refused" if kind == REFUSE else "reset by the peer"
            self.fail(LinkError(f"the stream to {self.target!r} was {verb}: {reason}"))
        elif kind == STOP:
            self._stop_output()
        else:
            raise ProtocolError(f"frames of kind {kind} are unknown")

    def fail(self, error: LinkError) -> None:
        """End both directions with an error; nothing is sent."""
        if self._error is not None:
            return
        self._error = error
        self._drop_input()
        self._drop_output()
        self._mux.finished(self)
        if self._opening is not None and not self._opening.done():
            self._opening.set_exception(error)
        _wake(self._reader)
        if self._receiver is not None:
            self._receiver.stream_lost(error)
        if self.on_failed is not None:
            self.on_failed()

    # --- inside ---------------------------------------------------------------------------------

    def _data(self, payload: bytes) -> None:
        size = len(payload)
        self._allowance -= size
        if self._allowance < 0 or self._eof:
            self.abort("data beyond the window" if not self._eof else "data after the end")
        elif self._stopped:
            pass  # sent before our STOP arrived
        elif self._receiver is not None and not self._paused:
            self._ate(size)
            self._receiver.stream_data(payload)
        else:
            self._buffer.append(payload)
            self._buffered += size
            self._mux.buffered_bytes += size
            _wake(self._reader)

    def _take(self, limit: int) -> bytes:
        data = self._buffer.popleft()
        if len(data) > limit:
            self._buffer.appendleft(data[limit:])
            data = data[:limit]
        elif self._buffer:
            parts, size = [data], len(data)
            while self._buffer and size + len(self._buffer[0]) <= limit:
                parts.append(self._buffer.popleft())
                size += len(parts[-1])
            data = b"".join(parts)
        self._buffered -= len(data)
        self._mux.buffered_bytes -= len(data)
        self._ate(len(data))
        return data

    def _ate(self, size: int) -> None:
        """Grant the peer what was read, in steps of half a window."""
        self._eaten += size
        if self._eaten * 2 < self._window or self._eof or self._stopped or self._error is not None:
            return
        window = FULL_WINDOW if self._mux.is_roomy else self._window
        grant = self._eaten + window - self._window
        self._window = window
        self._eaten = 0
        self._allowance += grant
        self._send(WINDOW, grant.to_bytes(4, "big"))

    def _end_input(self) -> None:
        if self._eof:
            raise ProtocolError("a stream ended twice")
        self._eof = True
        _wake(self._reader)
        self._mux.finished(self)
        self._tell_eof()

    def _tell_eof(self) -> None:
        if self._receiver is None or not self._eof or self._eof_told:
            return
        if not (self._paused or self._buffer or self._stopped or self._error):
            self._eof_told = True
            self._receiver.stream_eof()

    def _stop_output(self) -> None:
        self._write_error = LinkError(f"{self.target!r} reads no more of its stream")
        self._drop_output()
        self._fin_due = True
        self._finish_if_drained()
        if self._receiver is not None:
            self._receiver.stream_drained()

    def _finish_if_drained(self) -> None:
        if self._fin_due and not self._fin_sent and not self._unsent and self._error is None:
            self._fin_sent = True
            self._send(FIN)
            self._mux.finished(self)

    def _drop_input(self) -> None:
        self._mux.buffered_bytes -= self._buffered
        self._buffer.clear()
        self._buffered = 0

    def _drop_output(self) -> None:
        self._out.clear()
        self._unsent = 0
        while self._writers:
            _wake(self._writers.popleft())

    async def _drained(self) -> None:
        if self._unsent:
            waiter = asyncio.get_running_loop().create_future()
            self._writers.append(waiter)
            await waiter

    def _send(self, kind: int, payload: bytes = b"") -> None:
        self._mux.send(kind, self._id, payload)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
