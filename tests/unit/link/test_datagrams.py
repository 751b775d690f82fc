"""Datagrams survive a stream, wherever that cuts its bytes."""

import os

from arcboxd.link.datagrams import MAX_DATAGRAM_BYTES, Splitter, frame


def test_datagrams_survive_any_cut() -> None:
    sent = [b"", b"x", os.urandom(300), bytes(MAX_DATAGRAM_BYTES), b"last"]
    data = b"".join(map(frame, sent))
    for step in (1, 2, 3, 1000, len(data)):
        splitter = Splitter()
        pieces = (data[at : at + step] for at in range(0, len(data), step))
        assert [each for piece in pieces for each in splitter.feed(piece)] == sent
