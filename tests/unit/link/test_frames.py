from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from arcboxd.link.frames import DATA, HEADER_SIZE, MAGIC, MAX_PAYLOAD, PADDING, FrameReader, encode

payloads = st.lists(st.binary(max_size=300) | st.just(bytes(MAX_PAYLOAD)), max_size=5)


def wire(payload: bytes, sequence: int = 0) -> bytes:
    return encode(DATA, 7, sequence, 99, payload) + payload


def read_all(reader: FrameReader, data: bytes) -> list[bytes]:
    reader.feed(data)
    found = []
    while (frame := reader.next_frame()) is not None:
        found.append(frame[4])
    return found


@settings(max_examples=40)
@given(payloads, st.data())
def test_frames_survive_any_cut_and_any_padding(sent: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(bytes(data.draw(st.integers(0, 40))) + wire(payload) for payload in sent)
    reader, found, position = FrameReader(), [], 0
    while position < len(stream):
        size = data.draw(st.integers(1, 20000))
        found += read_all(reader, stream[position : position + size])
        position += size
    assert found == sent
    assert not reader.damaged


@given(st.binary(max_size=200) | st.just(MAGIC * 9), st.integers(0, 1), st.binary(max_size=100))
def test_after_any_half_frame_padding_finds_the_next(
    garbage: bytes, cut: int, payload: bytes
) -> None:
    half = wire(bytes(range(256)) * 20)[: 3000 + cut]
    reader = FrameReader()
    assert read_all(reader, garbage + half + PADDING + wire(payload))[-1:] == [payload]
    assert reader.damaged


@given(st.integers(0, HEADER_SIZE + 199), st.integers(1, 255))
def test_a_changed_byte_never_yields_a_frame(position: int, change: int) -> None:
    frame = bytearray(wire(b"x" * 200))
    frame[position] ^= change
    reader = FrameReader()
    found = read_all(reader, bytes(frame) + PADDING + wire(b"next"))
    assert found == [b"next"]
    assert reader.damaged


@given(st.lists(st.binary(max_size=64) | st.just(MAGIC) | st.just(wire(b"")[:24]), max_size=400))
def test_garbage_is_not_hoarded(parts: list[bytes]) -> None:
    reader = FrameReader()
    for part in parts:
        read_all(reader, part)
        assert reader.held_bytes < HEADER_SIZE + MAX_PAYLOAD
