"""The guest's end of the pipe: a virtio-serial character device as an asyncio transport.

While no host is connected the device polls as readable and hung up for ever, reads as empty and
takes no writes. So it must not be polled then: SIGIO tells when the host comes, and a slow timer
looks as well, in case a signal is lost.

Source: Linux drivers/char/virtio_console.c (`port_fops_poll`, `port_fops_read`, `port_fops_write`,
`send_sigio_to_port`).
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import select
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from arcboxd.link.session import Session

_READ_BYTES = 65536
_PAGE_BYTES = 4096  # one buffer of the driver, the most that one read returns
_MAX_READS = 16
_WRITE_BYTES = 32768  # the most that the driver takes at a time
_HIGH_BYTES = 1 << 16
_LOOK_S = 1.0

_log = logging.getLogger(__name__)


async def open_port(path: str, protocol_factory: Callable[[], Session]) -> PortTransport:
    """Open a virtio-serial port and run a session on it, whether or not a host is connected.

    Call it in the main thread: it takes SIGIO for itself until the transport is closed.

    Raises:
        OSError: The device is missing, or another process has it open.
    """
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return PortTransport(fd, protocol_factory())


class PortTransport(asyncio.Transport):
    """A transport over an open port; it outlives the host's connections and tells of each.

    The protocol's `link_down` is called when the host goes (what was not written is dropped) and
    `link_up` when one comes. `connection_lost` comes only after `close`, or when the device fails.
    """

    def __init__(self, fd: int, protocol: Session) -> None:
        """Take over a file descriptor opened for reading and writing without blocking."""
        super().__init__()
        self._fd = fd
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._high = _HIGH_BYTES
        self._low = _HIGH_BYTES // 4
        self._writing = False  # the loop tells when the port takes more
        self._writing_paused = False
        self._connected = True
        self._closing = False
        self._look_later: asyncio.TimerHandle | None = None
        # The default action of SIGIO ends the process: the handler comes first.
        self._loop.add_signal_handler(signal.SIGIO, self._look)
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        self._loop.add_reader(fd, self._readable)
        protocol.connection_made(self)

    @property
    def is_connected(self) -> bool:
        """Whether a host is connected, as far as was noticed."""
        return self._connected

    # --- transport ------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """Return whether it was closed."""
        return self._closing

    def close(self) -> None:
        """Close the port, dropping what the host does not take at once; idempotent."""
        self._close(None)

    def abort(self) -> None:
        """Close the port."""
        self._close(None)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write data, or keep what the port does not take yet; without a host, drop it."""
        if self._closing or not self._connected or not data:
            return
        if self._buffer:
            self._buffer += data
        else:
            rest = self._write_some(memoryview(data))
            if not rest:
                return
            self._buffer += rest
            self._loop.add_writer(self._fd, self._writable)
            self._writing = True
        if not self._writing_paused and len(self._buffer) > self._high:
            self._writing_paused = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait for the port."""
        return len(self._buffer)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the low and the high-water mark in bytes."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks at which the protocol is told to pause and to resume writing."""
        self._high = _HIGH_BYTES if high is None else high
        self._low = self._high // 4 if low is None else low

    # --- the port -------------------------------------------------------------------------------

    def _readable(self) -> None:
        """Read all there is: a read returns a page at most, and a wake-up costs more than that."""
        parts: list[bytes] = []
        gone = False
        try:
            while len(parts) < _MAX_READS:
                data = os.read(self._fd, _READ_BYTES)
                if not data:
                    gone = True
                    break
                parts.append(data)
                if len(data) < _PAGE_BYTES:
                    break
        except BlockingIOError:
            pass
        except ConnectionError:  # of a socket in a device's place
            gone = True
        except OSError as error:
            self._close(error)
            return
        if parts:
            self._protocol.data_received(b"".join(parts))
        if gone and not self._closing:
            self._disconnected()

    def _write_some(self, data: memoryview) -> memoryview:
        try:
            while data:
                data = data[os.write(self._fd, data[:_WRITE_BYTES]) :]
        except (BlockingIOError, ConnectionError):
            pass
        except OSError as error:
            self._loop.call_soon(self._close, error)
            return data[:0]
        return data

    def _writable(self) -> None:
        view = memoryview(self._buffer)
        rest = self._write_some(view)
        sent = len(view) - len(rest)
        rest.release()
        view.release()
        del self._buffer[:sent]
        if not sent and _hung_up(self._fd):
            self._disconnected()
            return
        if not self._buffer:
            self._stop_writing()
        if self._writing_paused and len(self._buffer) <= self._low:
            self._writing_paused = False
            self._protocol.resume_writing()

    def _stop_writing(self) -> None:
        if self._writing:
            self._loop.remove_writer(self._fd)
            self._writing = False

    def _disconnected(self) -> None:
        self._connected = False
        self._loop.remove_reader(self._fd)
        self._drop()
        fcntl.fcntl(self._fd, fcntl.F_SETFL, os.O_RDWR | os.O_NONBLOCK | os.O_ASYNC)
        self._protocol.link_down()
        self._look()

    def _drop(self) -> None:
        self._stop_writing()
        self._buffer.clear()
        if self._writing_paused:
            self._writing_paused = False
            self._protocol.resume_writing()

    def _look(self) -> None:
        """See whether a host has come, on SIGIO and once a second while there is none."""
        if self._connected or self._closing:
            return
        if self._look_later is not None:
            self._look_later.cancel()
        if _hung_up(self._fd):
            self._look_later = self._loop.call_later(_LOOK_S, self._look)
            return
        self._look_later = None
        fcntl.fcntl(self._fd, fcntl.F_SETFL, os.O_RDWR | os.O_NONBLOCK)
        self._connected = True
        self._loop.add_reader(self._fd, self._readable)
        self._protocol.link_up()

    def _close(self, error: OSError | None) -> None:
        if self._closing:
            return
        self._closing = True
        if error is not None:
            _log.error("the port failed: %s", error)
        if self._look_later is not None:
            self._look_later.cancel()
        self._stop_writing()
        self._buffer.clear()
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._loop.remove_signal_handler(signal.SIGIO)
        # One may still be on its way, and would end the process.
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        self._loop.call_soon(self._protocol.connection_lost, error)


def _hung_up(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
