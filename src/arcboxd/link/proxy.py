"""Bytes between a stream of the link and a socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from arcboxd.aio import cancel, spawn
from arcboxd.errors import LinkError

if TYPE_CHECKING:
    from arcboxd.link.stream import Stream

_CHUNK_BYTES = 1 << 16


async def proxy(stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes both ways until both have ended, half-closes included; then close the socket.

    A reset on one side breaks the other off; it is no error here. If it is cancelled, both are
    broken off.
    """
    back = spawn(_from_socket(reader, stream), name=f"from socket to {stream.target}")
    try:
        await _to_socket(stream, writer)
        await back
    except LinkError:
        writer.transport.abort()
    finally:
        await cancel(back)
        stream.abort("the other side broke off")
        writer.close()


async def _to_socket(stream: Stream, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await stream.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        stream.stop_reading()  # What the socket still has to say may go on.


async def _from_socket(reader: asyncio.StreamReader, stream: Stream) -> None:
    try:
        while data := await reader.read(_CHUNK_BYTES):
            await stream.write(data)
    except LinkError:
        return  # Nobody reads it; if the stream was reset, the other direction sees that too.
    except OSError as error:
        stream.abort(error.strerror or "the socket broke")
        return
    await stream.close_write()
