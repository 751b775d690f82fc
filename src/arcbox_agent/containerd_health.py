"""Asks containerd for its health: one gRPC call, made by hand.

HTTP/2 and gRPC libraries take the guest longer to import, under emulation, than containerd takes to
start. What is sent is the same each time, and of the answer only one message matters.

Source: RFC 9113 (frames), RFC 7541 (header fields), grpc/grpc doc/health-checking.md.
"""

from __future__ import annotations

import asyncio
import struct

_FRAME = struct.Struct(">HBBBI")  # length (24 bits, here 16 and 8), type, flags, stream
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_END_STREAM, _END_HEADERS = 1, 4
_STREAM = 1
_MAX_FRAMES = 64
_MAX_FRAME_BYTES = 16 * 1024
_PREFIX_BYTES = 5  # of a gRPC message: whether it is compressed, and its length
_SERVING = b"\x08\x01"  # field 1, status, is SERVING


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    size = len(payload)
    return _FRAME.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def _text(text: bytes) -> bytes:
    return bytes([len(text)]) + text


# Indexed fields of RFC 7541's static table, and literals without indexing.
_FIELDS = b"".join(
    (
        b"\x83",  # :method POST
        b"\x86",  # :scheme http
        b"\x04" + _text(b"/grpc.health.v1.Health/Check"),  # :path
        b"\x01" + _text(b"localhost"),  # :authority
        b"\x0f\x10" + _text(b"application/grpc"),  # content-type is 31, or 15 and 16 more
        b"\x00" + _text(b"te") + _text(b"trailers"),
    )
)
_REQUEST = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + _frame(_SETTINGS, 0, 0, b"")
    + _frame(_HEADERS, _END_HEADERS, _STREAM, _FIELDS)
    + _frame(_DATA, _END_STREAM, _STREAM, bytes(_PREFIX_BYTES))  # an empty message
)


async def is_serving(socket: str, timeout_s: float) -> bool:
    """Say whether the gRPC server at a unix socket calls itself healthy within the time."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(_REQUEST)
                return await _read_status(reader) == _SERVING
            finally:
                writer.transport.abort()
    except (OSError, EOFError, TimeoutError):
        return False


async def _read_status(reader: asyncio.StreamReader) -> bytes:
    """Read the message of the answer; empty when there is none."""
    message = b""
    for _ in range(_MAX_FRAMES):
        high, low, kind, flags, stream = _FRAME.unpack(await reader.readexactly(_FRAME.size))
        size = high << 8 | low
        if size > _MAX_FRAME_BYTES or kind == _GOAWAY:
            return b""
        payload = await reader.readexactly(size)
        if stream != _STREAM:
            continue
        if kind == _DATA:
            message += payload
            if len(message) >= _PREFIX_BYTES + len(_SERVING):
                return message[_PREFIX_BYTES:]
        if kind == _RST_STREAM or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
            return message[_PREFIX_BYTES:]
    return b""
