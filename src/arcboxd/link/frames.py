"""Frames on the wire of the link, and the reader that finds them among bytes it cannot trust.

A frame is a header of 28 bytes, big-endian, and at most 16 KiB of payload::

    magic 4 | kind 1 | zero 1 | length 2 | stream 4 | sequence 4 | session 8 | CRC-32 4 | payload

The checksum covers all that comes before it and the payload. Zero bytes between frames are padding
and mean nothing: as many as the longest frame complete whatever half frame a reader still waits
for.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING
from zlib import crc32

from arcboxd.errors import LinkError

MAGIC = b"\xa6\xd1\x97\xe3"
MAX_PAYLOAD = 16384
_HEAD = Struct(">4sBxHIIQ")
_HEADER = Struct(">4sBxHIIQI")
HEADER_SIZE = _HEADER.size
PADDING = bytes(HEADER_SIZE + MAX_PAYLOAD)

HELLO = 0
READY = 1
PING = 2
PONG = 3
OPEN = 4
ACCEPT = 5
REFUSE = 6
DATA = 7
WINDOW = 8
FIN = 9
STOP = 10
RESET = 11

if TYPE_CHECKING:
    from typing import TypeAlias

    Frame: TypeAlias = tuple[int, int, int, int, bytes]
    """Kind, stream, sequence, session and payload."""


class ProtocolError(LinkError):
    """The peer sent what the protocol does not allow; its session cannot go on."""


def encode(
    kind: int, stream: int, sequence: int, session: int, payload: bytes | memoryview
) -> bytes:
    """Return the header of a frame, whose payload of at most `MAX_PAYLOAD` bytes must follow it."""
    head = _HEAD.pack(MAGIC, kind, len(payload), stream, sequence, session)
    return head + crc32(payload, crc32(head)).to_bytes(4, "big")


class FrameReader:
    """Cuts a byte stream into frames and steps over what is not a frame.

    It holds at most one frame and what was fed last. Its work is linear in the bytes fed: a frame
    with a wrong checksum is stepped over as a whole, never searched, or a hostile peer could have
    each byte checked thousands of times. What that swallows, the repeated handshake brings again.

    Attributes:
        damaged: Something that was neither padding nor a sound frame was stepped over. The owner
            clears it.
    """

    __slots__ = ("_buffer", "_position", "damaged")

    def __init__(self) -> None:
        self._buffer = b""
        self._position = 0
        self.damaged = False

    @property
    def held_bytes(self) -> int:
        """How many bytes wait for the rest of their frame."""
        return len(self._buffer) - self._position

    def feed(self, data: bytes) -> None:
        """Take the next bytes; `next_frame` must have returned None before."""
        self._buffer = self._buffer + data if self._buffer else data

    def next_frame(self) -> Frame | None:
        """Return the next sound frame, or None when more bytes are needed."""
        buffer, position = self._buffer, self._position
        size = len(buffer)
        while size - position >= HEADER_SIZE:
            magic, kind, length, stream, sequence, session, checksum = _HEADER.unpack_from(
                buffer, position
            )
            if magic != MAGIC or length > MAX_PAYLOAD:
                position = self._skip(position)
                continue
            start = position + HEADER_SIZE
            end = start + length
            if end > size:
                break
            payload = buffer[start:end]
            if crc32(payload, crc32(buffer[position : start - 4])) != checksum:
                self.damaged = True
                position = end
                continue
            self._position = end
            return kind, stream, sequence, session, payload
        self._buffer = buffer[position:]
        self._position = 0
        return None

    def _skip(self, position: int) -> int:
        """Return where the next frame may begin, at least one byte further on."""
        found = self._buffer.find(MAGIC, position + 1)
        if found < 0:
            # The first bytes of a magic may be the last that came.
            found = len(self._buffer) - len(MAGIC) + 1
        if self._buffer.count(0, position, found) != found - position:
            self.damaged = True
        return found
