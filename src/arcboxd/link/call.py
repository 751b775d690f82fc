"""Calls over the link: one stream each, with requests one way and responses the other.

A call is a stream to the target ``call:/SERVICE/METHOD``. What is sent on it is a sequence of
frames: a byte that says what it is, a length in 4 bytes (big-endian), and as many bytes: a message,
or, as the callee's last, an error. Whoever has sent all ends its half of the stream; a reset
cancels the call.

This is for the daemon's own calls: under emulation HTTP/2 and gRPC in Python take the guest several
times as long as the call itself. Clients of ``agent.sock`` speak gRPC.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from arcboxd.errors import ArcboxError, LinkError

if TYPE_CHECKING:
    from arcboxd.link.stream import Stream

CALL = "call:"
"""The beginning of a call's target; the method's path follows."""
HELLO = b"arcboxd"
"""What the host says when it begins a session."""
WARM_UP = b"arcboxd, warm up"
"""The same, to a clone whose second processor is to run a command that does nothing meanwhile."""
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

_MESSAGE = 0
_ERROR = 1
_HEADER = struct.Struct(">BI")


class RemoteError(Exception):
    """What the callee raised: its kind and reason for programs, its sentence, and its hint."""

    def __init__(self, kind: str = "", reason: str = "", message: str = "", hint: str = "") -> None:
        """Keep the four."""
        super().__init__(message)
        self.kind = kind
        self.reason = reason
        self.message = message
        self.hint = hint


class Call:
    """One end of a call. One task receives, and any number send."""

    __slots__ = ("_received", "stream")

    def __init__(self, stream: Stream) -> None:
        """Take over a stream."""
        self.stream = stream
        self._received = b""

    async def receive(self) -> bytes | None:
        """Return the next message, or None when the other end has sent all.

        Raises:
            RemoteError: The callee failed.
            LinkError: The stream was reset, its session ended, or what came is no message.
        """
        header = await self._take(_HEADER.size)
        if header is None:
            return None
        kind, size = _HEADER.unpack(header)
        if kind not in (_MESSAGE, _ERROR) or size > MAX_MESSAGE_BYTES:
            raise LinkError(f"a message of {size} bytes and kind {kind} is not allowed")
        payload = await self._take(size)
        if payload is None:
            raise LinkError("a message was cut short")
        if kind == _ERROR:
            raise RemoteError(*payload.decode(errors="replace").split("\0", 3))
        return payload

    async def send(self, message: bytes) -> None:
        """Send a message, and wait until the other end has room for it.

        Raises:
            LinkError: The stream was reset, its session ended, or the message is too large.
        """
        if len(message) > MAX_MESSAGE_BYTES:
            raise LinkError(f"a message of {len(message)} bytes is too large")
        await self.stream.write(_HEADER.pack(_MESSAGE, len(message)) + message)

    async def fail(self, error: ArcboxError) -> None:
        """Send an error, which ends the call.

        Raises:
            LinkError: The stream was reset, or its session ended.
        """
        parts = (error.kind.value, error.reason, error.message, error.hint)
        payload = "\0".join(part.replace("\0", "") for part in parts).encode(errors="replace")
        await self.stream.write(_HEADER.pack(_ERROR, len(payload)) + payload)

    async def _take(self, size: int) -> bytes | None:
        """Take exactly so many bytes; None at the end of the stream."""
        while len(self._received) < size:
            more = await self.stream.read(MAX_MESSAGE_BYTES)
            if not more:
                if self._received:
                    raise LinkError("a message was cut short")
                return b"" if size == 0 else None
            self._received += more
        taken, self._received = self._received[:size], self._received[size:]
        return taken
