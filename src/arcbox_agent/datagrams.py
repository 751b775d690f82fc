"""The link's targets ``udp:ADDRESS:PORT``: a stream's datagrams, sent from a socket of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from arcboxd.errors import LinkError
from arcboxd.link.datagrams import MAX_UNSENT_BYTES, Splitter, frame

if TYPE_CHECKING:
    from arcboxd.link.stream import Stream


class _Socket(asyncio.DatagramProtocol):
    """Sends what comes back on; what the stream has no room for is lost, as in any network."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def datagram_received(self, data: bytes, _address: object) -> None:
        if self._stream.unsent_bytes < MAX_UNSENT_BYTES:
            try:
                self._stream.write_nowait(frame(data))
            except LinkError:  # it was ended, and the reader sees that too
                return

    def error_received(self, _error: Exception) -> None:
        """Go on: nobody listens at the moment."""


async def connect(stream: Stream, host: str, port: int) -> None:
    """Serve a stream until its opener ends it, who sees to it that idle ones are ended.

    Raises:
        LinkError: There is no way to that address.
    """
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Socket(stream), remote_addr=(host, port)
        )
    except OSError as error:
        raise LinkError(f"cannot reach {stream.target}: {error}") from error
    splitter = Splitter()
    try:
        stream.accept()
        while data := await stream.read():
            for datagram in splitter.feed(data):
                transport.sendto(datagram)
    finally:
        transport.close()
