"""Streams: order, half-close, refusal, windows, fairness, and what a hostile peer may not do."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcboxd.errors import LinkError
from arcboxd.link.frames import ACCEPT, DATA, FIN, MAX_PAYLOAD, OPEN, WINDOW
from arcboxd.link.mux import MAX_TARGET, Handler
from arcboxd.link.peer import Stream
from arcboxd.link.stream import FULL_WINDOW, INITIAL_WINDOW
from tests.unit.link.simulation import World, chunks, echo, exchange, run


def serve(handlers: dict[str, Handler]) -> World:
    def accept(target: str) -> Handler:
        if target not in handlers:
            raise LinkError(f"nothing listens at {target}")
        return handlers[target]

    return World(accept=accept)


async def idle(stream: Stream) -> None:
    stream.accept()
    await asyncio.Event().wait()


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(0, 200_000), min_size=1, max_size=6),
    st.integers(0, 1 << 20),
    st.integers(1, 9000),
)
def test_bytes_arrive_whole_and_in_order(sizes: list[int], seed: int, piece_bytes: int) -> None:
    async def main() -> None:
        world = World(seed=seed, piece_bytes=max(piece_bytes, 300))
        await world.both_up()
        sent = [bytes((i * 7 + n) % 251 for i in range(size)) for n, size in enumerate(sizes)]
        got = await asyncio.gather(*(exchange(world.host, data) for data in sent))
        assert got == sent
        assert (world.host.stream_count, world.guest.stream_count) == (0, 0)

    run(main())


def _forget_numbers(world: World) -> None:
    """Let the guest take answers to what its mux never sent for answers to streams long closed."""
    mux = world.guest._mux
    assert mux is not None
    mux._next_number = 10_000


def test_both_ends_may_open() -> None:
    async def main() -> None:
        world = World()
        await world.both_up()
        to_guest, to_host = await asyncio.gather(
            exchange(world.host, b"a"), exchange(world.guest, b"b")
        )
        assert (to_guest, to_host) == (b"a", b"b")

    run(main())


def test_each_half_closes_by_itself() -> None:
    async def late(stream: Stream) -> None:
        got = b"".join([part async for part in chunks(stream)])
        await stream.write(got[::-1])

    async def main() -> None:
        world = serve({"late": late})
        await world.both_up()
        assert await exchange(world.host, b"abc" * 50_000, "late") == b"cba" * 50_000
        stream = await world.host.open("late")
        await stream.close_write()
        await stream.close_write()
        assert await stream.read() == b""
        assert await stream.read() == b""
        assert stream.is_closed
        with pytest.raises(LinkError, match="closed for writing"):
            await stream.write(b"x")

    run(main())


def test_a_target_is_refused_with_the_reason() -> None:
    async def fails(stream: Stream) -> None:
        raise LinkError("no such socket")

    async def late(stream: Stream) -> None:
        await stream.read()
        raise LinkError("it broke")

    async def main() -> None:
        world = serve({"fails": fails, "late": late, "x" * MAX_TARGET: echo})
        await world.both_up()
        with pytest.raises(LinkError, match="refused: nothing listens at nowhere"):
            await world.host.open("nowhere")
        with pytest.raises(LinkError, match="refused: no such socket"):
            await world.host.open("fails")
        stream = await world.host.open("late")
        await stream.write(b"x")
        with pytest.raises(LinkError, match="it broke"):
            await stream.read()
        with pytest.raises(LinkError, match="1 to 512 bytes"):
            await world.host.open("x" * (MAX_TARGET + 1))
        assert await exchange(world.host, b"ok", "x" * MAX_TARGET) == b"ok"
        assert (world.host.stream_count, world.guest.stream_count) == (0, 0)

    run(main())


def test_a_reset_reaches_reader_and_writer_of_both_ends() -> None:
    async def main() -> None:
        world = World()
        await world.both_up()
        stream = await world.host.open("echo")
        reading = asyncio.ensure_future(stream.read())
        await asyncio.sleep(0.01)
        stream.abort("enough")
        stream.abort()
        with pytest.raises(LinkError, match="enough"):
            await reading
        with pytest.raises(LinkError, match="enough"):
            await stream.write(b"x")
        await stream.close_write()
        await asyncio.sleep(0.01)
        assert world.guest.stream_count == 0

    run(main())


def test_a_cancelled_open_leaves_nothing() -> None:
    async def silent(stream: Stream) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        world = serve({"silent": silent})
        await world.both_up()
        opening = asyncio.ensure_future(world.host.open("silent"))
        await asyncio.sleep(1)
        opening.cancel()
        await asyncio.wait([opening])
        await asyncio.sleep(1)
        assert (world.host.stream_count, world.guest.stream_count) == (0, 0)

    run(main())


def test_a_writer_waits_for_the_reader_and_memory_stays_bounded() -> None:
    async def main() -> None:
        world = serve({"idle": idle})
        await world.both_up()
        stream = await world.host.open("idle")
        writing = asyncio.ensure_future(stream.write(bytes(10_000_000)))
        await asyncio.sleep(10)
        assert not writing.done()
        mux = world.guest._mux
        assert mux is not None
        assert mux.buffered_bytes == INITIAL_WINDOW
        assert len(world.to_guest.queue) == 0
        writing.cancel()
        await asyncio.wait([writing])

    run(main())


def test_a_stuck_stream_does_not_hold_up_the_others() -> None:
    async def main() -> None:
        world = serve({"idle": idle, "echo": echo})
        await world.both_up()
        stuck = [await world.host.open("idle") for _ in range(20)]
        writers = [asyncio.ensure_future(stream.write(bytes(1 << 20))) for stream in stuck]
        await asyncio.sleep(1)
        assert await exchange(world.host, b"quick" * 100_000) == b"quick" * 100_000
        for writer in writers:
            writer.cancel()
        await asyncio.wait(writers)

    run(main())


def test_a_bulk_stream_leaves_room_for_a_small_one() -> None:
    async def sink(stream: Stream) -> None:
        async for _ in chunks(stream):
            pass

    async def main() -> None:
        world = serve({"sink": sink, "echo": echo})
        await world.both_up()
        bulk = [await world.host.open("sink") for _ in range(3)]
        small = await world.host.open("echo")
        writers = [asyncio.ensure_future(stream.write(bytes(8 << 20))) for stream in bulk]
        await asyncio.sleep(0.1)
        for _ in range(5):
            before = world.to_guest.seen
            await small.write(b"?")
            assert await small.read() == b"?"
            # What the transport holds, one turn of the others, and what went while it came back.
            assert world.to_guest.seen - before < 1 << 20
            assert not any(writer.done() for writer in writers)
        await asyncio.wait(writers)

    run(main())


def test_a_thousand_streams_at_once_and_one_too_many() -> None:
    async def main() -> None:
        world = World(piece_bytes=1 << 16)
        await world.both_up()
        streams = [await world.host.open("echo") for _ in range(1024)]
        with pytest.raises(LinkError, match="already in use"):
            await world.host.open("echo")
        for number, stream in enumerate(streams):
            stream.write_nowait(b"%d" % number)
        for number, stream in enumerate(streams):
            assert await stream.read() == b"%d" % number
            await stream.close_write()
        await asyncio.sleep(1)
        assert (world.host.stream_count, world.guest.stream_count) == (0, 0)

    run(main())


def test_a_peer_that_opens_too_many_is_refused() -> None:
    async def main() -> None:
        world = World(accept=lambda _: idle, piece_bytes=1 << 16)
        await world.both_up()
        _forget_numbers(world)
        for number in range(2, 4002, 2):
            world.guest.protocol.send(OPEN, number, b"idle")
        await asyncio.sleep(5)
        assert world.host.stream_count == 1024
        assert world.host.session_count == 1

    run(main())


def test_data_beyond_the_window_resets_the_stream_only() -> None:
    async def main() -> None:
        world = World(accept=lambda _: idle, piece_bytes=1 << 16)
        await world.both_up()
        stream = await world.host.open("idle")
        other = await world.host.open("idle")
        for _ in range(FULL_WINDOW // MAX_PAYLOAD):
            world.guest.protocol.send(DATA, stream.number, bytes(MAX_PAYLOAD))
        await asyncio.sleep(1)
        with pytest.raises(LinkError, match="beyond the window"):
            await stream.read()
        assert not other.is_closed
        mux = world.host._mux
        assert mux is not None
        assert mux.buffered_bytes == 0

    run(main())


@pytest.mark.parametrize(
    ("kind", "number", "payload"),
    [
        (DATA, 9, b"never opened by us"),
        (DATA, 8, b"never opened by it"),
        (OPEN, 9, b"a number of ours"),
        (OPEN, 0, b"number 0"),
        (WINDOW, 1, b"\xff\xff\xff\xff"),
        (WINDOW, 1, b"short"),
        (77, 1, b"an unknown kind"),
        (OPEN, 1, b"open again"),
    ],
)
def test_a_breach_of_the_protocol_ends_the_session(kind: int, number: int, payload: bytes) -> None:
    async def main() -> None:
        world = World(accept=lambda _: idle)
        await world.both_up()
        stream = await world.host.open("idle")
        world.guest.protocol.send(kind, number, payload)
        with pytest.raises(LinkError, match="session of the link ended"):
            await stream.read()
        await world.both_up()
        assert world.host.session_count == 2

    run(main())


def test_frames_for_a_stream_that_just_closed_are_ignored() -> None:
    async def main() -> None:
        world = World()
        await world.both_up()
        assert await exchange(world.host, b"x") == b"x"
        for kind in (DATA, FIN, WINDOW, ACCEPT):
            world.guest.protocol.send(kind, 1, bytes(4))
        assert await exchange(world.host, b"y") == b"y"
        assert world.host.session_count == 1

    run(main())


def test_targets_that_are_too_long_or_no_text_are_refused() -> None:
    async def main() -> None:
        world = World()
        await world.both_up()
        _forget_numbers(world)
        world.guest.protocol.send(OPEN, 2, b"x" * (MAX_TARGET + 1))
        world.guest.protocol.send(OPEN, 4, b"\xff\xfe")
        world.guest.protocol.send(OPEN, 6, b"")
        await asyncio.sleep(1)
        assert world.host.stream_count == 0
        assert world.host.session_count == 1

    run(main())


def test_a_handler_that_stops_reading_stops_the_writer_and_loses_no_answer() -> None:
    async def curt(stream: Stream) -> None:
        await stream.read(10)
        await stream.write(b"enough" * 1000)

    async def main() -> None:
        world = serve({"curt": curt})
        await world.both_up()
        stream = await world.host.open("curt")
        with pytest.raises(LinkError, match="reads no more"):
            await stream.write(bytes(10_000_000))
        assert b"".join([part async for part in chunks(stream)]) == b"enough" * 1000
        await asyncio.sleep(0.1)
        assert (world.host.stream_count, world.guest.stream_count) == (0, 0)

    run(main())


def test_handlers_end_with_their_session() -> None:
    ended = []

    async def lasting(stream: Stream) -> None:
        stream.accept()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(stream.target)

    async def main() -> None:
        world = serve({"lasting": lasting})
        await world.both_up()
        await world.host.open("lasting")
        world.new_host()
        await world.both_up()
        await asyncio.sleep(0)

    run(main())
    assert ended == ["lasting"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 14), st.integers(0, 9), st.binary(max_size=40)), max_size=60)
)
def test_no_frame_of_a_session_can_break_the_host(frames: list[tuple[int, int, bytes]]) -> None:
    async def main() -> None:
        world = World()
        await world.both_up()
        stream = await world.host.open("echo")
        for kind, number, payload in frames:
            world.guest.protocol.send(kind, number, payload)
        await asyncio.sleep(1)
        await world.both_up()
        stream.abort()
        fresh = world.new_guest()
        await asyncio.sleep(1)
        await world.both_up()
        assert fresh.is_up
        assert await exchange(world.host, b"alive") == b"alive"

    run(main())
