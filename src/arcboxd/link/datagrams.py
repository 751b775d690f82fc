"""Datagrams on a stream of the link: each after its length in 2 bytes, big-endian."""

from __future__ import annotations

_LENGTH_BYTES = 2
MAX_DATAGRAM_BYTES = (1 << 16) - 1
MAX_UNSENT_BYTES = 1 << 18
"""What may wait in a stream to be sent; further datagrams are dropped, as a network does."""


def frame(datagram: bytes) -> bytes:
    """Give a datagram as it goes on a stream; it has at most `MAX_DATAGRAM_BYTES`."""
    return len(datagram).to_bytes(_LENGTH_BYTES, "big") + datagram


class Splitter:
    """Takes a stream's bytes apart again."""

    __slots__ = ("_received",)

    def __init__(self) -> None:
        """Begin at the beginning of a stream."""
        self._received = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Give the datagrams that these bytes complete."""
        received = self._received + data
        found = []
        at = 0
        while len(received) >= (begin := at + _LENGTH_BYTES):
            end = begin + int.from_bytes(received[at:begin], "big")
            if end > len(received):
                break
            found.append(received[begin:end])
            at = end
        self._received = received[at:]
        return found
