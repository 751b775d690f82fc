"""Bytes between a stream of the link and a socket, with nothing between but callbacks.

Not by asyncio's transports, which give up a socket's input when its output fails: what a server
said before it hung up would be lost. And each chunk costs them several times as much, which under
emulation is most of what a guest can move.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from arcboxd.errors import LinkError

if TYPE_CHECKING:
    from arcboxd.link.stream import Stream

_CHUNK_BYTES = 1 << 16
_HIGH_BYTES = 1 << 17
_LOW_BYTES = 1 << 15
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


async def pump(stream: Stream, sock: socket.socket) -> None:
    """Copy bytes both ways until both have ended, half-closes included; then close the socket.

    A reset on one side breaks the other off; it is no error here. If it is cancelled, both are
    broken off. At most a stream's window and `_HIGH_BYTES` are held.

    Args:
        stream: Nobody else reads or writes it.
        sock: A connected stream socket, which does not block.
    """
    pumping = _Pump(stream, sock)
    try:
        await pumping.done
    finally:
        pumping.close()


class _Pump:
    """Implements `arcboxd.link.stream.StreamReceiver`."""

    def __init__(self, stream: Stream, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()
        self._stream = stream
        self._socket = sock
        self._descriptor = sock.fileno()
        self._reading = False
        self._input_over = False
        self._output_over = False
        self._pending = memoryview(b"")
        self._read_on()
        stream.set_receiver(self)

    # --- socket to stream -----------------------------------------------------------------------

    def _read_on(self) -> None:
        if not self._reading and not self._input_over:
            self._reading = True
            self._loop.add_reader(self._descriptor, self._readable)

    def _read_no_more(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._descriptor)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._stream.abort(error.strerror or "the socket broke")
            return
        if not data:
            self._end_input()
            self._stream.finish()
            if _hung_up(self._descriptor):
                self._give_up_output()
            self._finish()
            return
        try:
            self._stream.write_nowait(data)
        except LinkError:
            # The peer reads no more; what it still has to say may go on.
            self._end_input()
            self._finish()
            return
        if self._stream.unsent_bytes > _HIGH_BYTES:
            self._read_no_more()

    def _end_input(self) -> None:
        self._read_no_more()
        self._input_over = True

    def stream_drained(self) -> None:
        """Read the socket again unless too much waits still, or never if the peer does not."""
        if self._stream.is_stopped:
            self._end_input()
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RD)
        elif self._stream.unsent_bytes <= _LOW_BYTES:
            self._read_on()
        self._finish()

    # --- stream to socket -----------------------------------------------------------------------

    def stream_data(self, data: bytes) -> None:
        """Give bytes to the socket, or keep them until it has room and take no more meanwhile."""
        view = memoryview(data)
        rest = view[self._send(view) :]
        if rest and not self._output_over:
            self._pending = rest
            self._stream.pause_reading()
            self._loop.add_writer(self._descriptor, self._writable)

    def _writable(self) -> None:
        self._pending = self._pending[self._send(self._pending) :]
        if not self._pending and not self._output_over:
            self._loop.remove_writer(self._descriptor)
            self._stream.resume_reading()

    def _send(self, view: memoryview) -> int:
        try:
            return self._socket.send(view)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._give_up_output()
            self._finish()
            return 0

    def _give_up_output(self) -> None:
        """Take no more for a socket that nobody reads; what it still has to say may go on."""
        if not self._output_over:
            self._end_output()
            self._stream.stop_reading()

    def _end_output(self) -> None:
        self._output_over = True
        if self._pending:
            self._pending = memoryview(b"")
            self._loop.remove_writer(self._descriptor)

    def stream_eof(self) -> None:
        """Half-close the socket, which has taken all: else the stream would be paused."""
        self._end_output()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self._finish()

    # --- the end --------------------------------------------------------------------------------

    def _finish(self) -> None:
        """End when neither direction has anything left to do."""
        over = self._input_over and self._output_over and not self._stream.unsent_bytes
        if over and not self.done.done():
            self.done.set_result(None)

    def stream_lost(self, error: LinkError) -> None:  # noqa: ARG002
        """Break the socket off."""
        if self._descriptor >= 0 and self._socket.family != socket.AF_UNIX:
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        self.close()
        if not self.done.done():
            self.done.set_result(None)

    def close(self) -> None:
        """Close the socket and what is left of the stream. Idempotent."""
        if self._descriptor >= 0:
            self._end_input()
            self._end_output()
            self._descriptor = -1
            self._socket.close()
            self._stream.abort("the other side broke off")


def _hung_up(descriptor: int) -> bool:
    """Tell whether the peer of a unix socket has closed it both ways, and not only half."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
