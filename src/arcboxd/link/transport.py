"""An asyncio transport over a stream, so that a protocol needs no socket in between."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from arcboxd.errors import LinkError

if TYPE_CHECKING:
    from arcboxd.link.stream import Stream

_HIGH_BYTES = 1 << 16
_log = logging.getLogger(__name__)


class StreamTransport(asyncio.Transport):
    """Runs an asyncio.Protocol on a stream.

    Its `data_received` is called from the link's frame handler. The mux's windows are the flow
    control: while reading is paused the peer can send no more than its window, and the protocol is
    told to pause writing while more than the high-water mark waits for the peer's.
    """

    def __init__(
        self,
        stream: Stream,
        protocol: asyncio.Protocol,
        extra: dict[str, object] | None = None,
    ) -> None:
        """Attach the protocol: it is told of the connection, and gets what has already come."""
        super().__init__(extra)
        self._stream = stream
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._lost = False
        self._reading = True
        self._writing_paused = False
        self._high = _HIGH_BYTES
        self._low = _HIGH_BYTES // 4
        self._done = asyncio.Event()
        protocol.connection_made(self)
        stream.set_receiver(self)

    async def wait_closed(self) -> None:
        """Wait until the protocol was told that the connection is lost."""
        await self._done.wait()

    # --- transport ------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Let another protocol go on."""
        if not isinstance(protocol, asyncio.Protocol):
            raise TypeError(f"a stream needs a streaming protocol, not {protocol!r}")
        self._protocol = protocol

    def get_protocol(self) -> asyncio.Protocol:
        """Return the protocol."""
        return self._protocol

    def is_closing(self) -> bool:
        """Return whether it is closed or about to be."""
        return self._closing

    def close(self) -> None:
        """Read no more, send what was written and the end, then lose the connection."""
        if not self._closing:
            self._closing = True
            self._stream.stop_reading()
            self._stream.finish()
            self._lose_if_sent()

    def abort(self) -> None:
        """Reset the stream and lose the connection."""
        self._closing = True
        self._stream.abort()
        self._lose(None)

    def is_reading(self) -> bool:
        """Return whether the protocol gets data."""
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        """Deliver nothing until `resume_reading`."""
        self._reading = False
        self._stream.pause_reading()

    def resume_reading(self) -> None:
        """Deliver data again."""
        if not self._reading:
            self._reading = True
            self._stream.resume_reading()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send data, or keep it until the peer's window has room."""
        if self._closing or self._stream.is_closed:
            return
        try:
            self._stream.write_nowait(data)
        except LinkError:  # The peer reads no more.
            self.abort()
            return
        if not self._writing_paused and self._stream.unsent_bytes > self._high:
            self._writing_paused = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        """Return True: streams half-close."""
        return True

    def write_eof(self) -> None:
        """Half-close once what was written is sent."""
        self._stream.finish()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait for the peer's window or the link."""
        return self._stream.unsent_bytes

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the low and the high-water mark in bytes."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks at which the protocol is told to pause and to resume writing."""
        if high is None:
            high = _HIGH_BYTES if low is None else 4 * low
        self._high = high
        self._low = high // 4 if low is None else low

    # --- the stream's side ----------------------------------------------------------------------

    def stream_data(self, data: bytes) -> None:
        """Hand data to the protocol; a protocol that raises loses its connection."""
        try:
            self._protocol.data_received(data)
        except Exception:  # noqa: BLE001 - as asyncio's own transports do
            _log.exception("the protocol on %r failed", self._stream)
            self.abort()

    def stream_eof(self) -> None:
        """Tell the protocol of the peer's half-close, and close unless it wants to write on."""
        if not self._closing and not self._protocol.eof_received():
            self.close()

    def stream_drained(self) -> None:
        """Let the protocol write again, or finish closing."""
        if self._writing_paused and self._stream.unsent_bytes <= self._low:
            self._writing_paused = False
            self._protocol.resume_writing()
        self._lose_if_sent()

    def stream_lost(self, error: LinkError) -> None:
        """Lose the connection, because the stream was reset."""
        self._closing = True
        self._lose(error)

    def _lose_if_sent(self) -> None:
        if self._closing and not self._stream.unsent_bytes:
            self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self._loop.call_soon(self._tell_lost, error)

    def _tell_lost(self, error: Exception | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self._done.set()
