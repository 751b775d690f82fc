"""The handshake, through every kind of loss: a session comes, and never an old byte with it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from arcboxd.errors import LinkError
from arcboxd.link.frames import DATA, HELLO, FrameReader, encode
from arcboxd.link.peer import Peer
from arcboxd.link.session import MAX_HELLO
from tests.unit.link.simulation import World, exchange, run, until


def test_a_session_stands_after_a_round_trip_and_a_half() -> None:
    async def main() -> float:
        world = World(piece_bytes=1 << 20)
        await asyncio.gather(world.host.wait_session(), world.guest.wait_session())
        assert (world.host.peer_hello, world.guest.peer_hello) == (b"guest", b"host")
        assert (world.host.session_count, world.guest.session_count) == (1, 1)
        return asyncio.get_running_loop().time()

    assert run(main()) < 0.005  # the pipe takes 1 ms each way


def test_a_guest_that_comes_late_gets_a_session_at_once() -> None:
    async def main() -> None:
        world = World()
        world.to_guest.protocol = None
        world.new_host()
        await asyncio.sleep(30)
        assert len(world.to_guest.queue) < 150_000, "the host floods a guest that boots"
        world.new_guest()
        began = asyncio.get_running_loop().time()
        await world.both_up()
        assert asyncio.get_running_loop().time() - began < 0.25

    run(main())


def test_bytes_sent_before_the_guest_came_may_be_dropped() -> None:
    async def main() -> None:
        world = World()
        world.to_guest.stalled = True
        world.new_host()
        await asyncio.sleep(1)
        world.to_guest.queue.clear()
        world.to_guest.stalled = False
        world.new_guest()
        began = asyncio.get_running_loop().time()
        await world.both_up()
        assert asyncio.get_running_loop().time() - began < 0.1

    run(main())


def test_a_host_goes_on_at_once_with_a_guest_that_was_frozen_in_a_session() -> None:
    async def main() -> None:
        world = World(piece_bytes=1 << 20)
        await world.both_up()
        assert await exchange(world.host, b"before") == b"before"
        mark = world.host.mark
        greetings: list[bytes] = []
        world.guest.on_hello = greetings.append
        loop = asyncio.get_running_loop()
        world.new_host(frozen=mark)
        await asyncio.sleep(60)
        assert world.host.session_count == 1  # though neither end had anything to say
        for _ in range(2):  # each clone's host; the second one knows the same
            began, sessions = loop.time(), world.guest.session_count
            world.new_host(frozen=mark)
            assert world.host.is_up
            stream = world.host.start("echo")
            await stream.write(b"after")
            assert await stream.read() == b"after"
            assert loop.time() - began < 0.003  # the pipe takes 1 ms each way
            stream.abort()
            assert world.guest.session_count == sessions + 1
        assert greetings == [b"host"] * 3
        await asyncio.sleep(60)
        assert world.host.session_count == 1
        assert await exchange(world.host, b"later") == b"later"

    run(main())


@pytest.mark.parametrize("how", ["restarted", "never there", "silent", "another session"])
def test_a_host_that_is_wrong_about_where_the_guest_goes_on_greets_it(how: str) -> None:
    async def main() -> None:
        world = World(keepalive_s=20)
        await world.both_up()
        mark = world.host.mark
        if how == "restarted":
            world.new_guest()
        elif how == "another session":
            world.new_host()
            await world.both_up()
        else:
            world.to_guest.stalled = True
        world.new_host(frozen=mark)
        if how == "never there":
            await asyncio.sleep(1)
            world.to_guest.queue.clear()
            world.new_guest()
        elif how == "silent":
            await asyncio.sleep(30)
        world.to_guest.stalled = False
        world.to_guest.schedule()
        async with asyncio.timeout(20):
            while True:
                try:
                    await world.host.wait_session()
                    assert await exchange(world.host, b"B" * 3000) == b"B" * 3000
                    break
                except LinkError:
                    continue

    run(main())


def test_there_is_a_mark_while_a_session_stands() -> None:
    async def main() -> None:
        world = World()
        assert world.host.mark == 0
        await world.both_up()
        assert world.host.mark != 0
        world.to_guest.stalled = True
        assert world.new_host().mark == 0

    run(main())


@pytest.mark.parametrize("who", ["host", "guest", "both"])
@pytest.mark.parametrize("drop", [False, True])
def test_a_restart_at_any_byte_of_a_conversation(who: str, drop: bool) -> None:
    """Old bytes are all A, new ones all B: an echo of B alone proves that none crossed."""

    async def main(at: int) -> None:
        world = World(seed=at, piece_bytes=700)
        await world.both_up()
        old = asyncio.ensure_future(exchange(world.host, b"A" * 3000))
        start = world.to_guest.seen + world.to_host.seen
        await until(lambda: old.done() or world.to_guest.seen + world.to_host.seen >= start + at)
        if drop:
            world.to_guest.queue.clear()
            world.to_host.queue.clear()
        if who != "guest":
            world.new_host()
        if who != "host":
            world.new_guest()
        async with asyncio.timeout(20):
            await world.host.wait_session()
            while True:  # a session may stand on one end when the other is about to end it
                try:
                    assert await exchange(world.host, b"B" * 3000) == b"B" * 3000
                    break
                except LinkError:
                    await world.host.wait_session()
        if not old.done():
            old.cancel()
        await asyncio.gather(old, return_exceptions=True)

    for at in range(0, 6500, 173):
        run(main(at))


def _damager(dice: random.Random) -> Callable[[bytes], bytes]:
    def damage(piece: bytes) -> bytes:
        roll = dice.random()
        if roll < 0.03:
            return piece[: dice.randrange(len(piece) + 1)]
        if roll < 0.06:
            return piece + dice.randbytes(dice.randrange(60))
        if roll < 0.08:
            return piece * 2
        if roll < 0.1:
            changed = bytearray(piece)
            changed[dice.randrange(len(piece))] ^= 1 << dice.randrange(8)
            return bytes(changed)
        return piece

    return damage


async def _try_exchange(world: World, data: bytes, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            await world.host.wait_session()
            assert await exchange(world.host, data) == data
    except (LinkError, TimeoutError):
        return False
    except ExceptionGroup as group:
        assert group.split(LinkError)[1] is None  # noqa: PT017
        return False
    return True


@settings(max_examples=30, deadline=None, phases=[Phase.generate])
@given(st.integers(0, 1 << 32), st.integers(200, 6000))
def test_any_sequence_of_damage_heals(seed: int, piece_bytes: int) -> None:
    """Lose, repeat, change and insert bytes for a while; then a session comes, with whole data."""
    dice = random.Random(seed)  # noqa: S311

    async def main() -> None:
        world = World(seed=seed, piece_bytes=piece_bytes, keepalive_s=1)
        world.to_host.damage = world.to_guest.damage = _damager(dice)
        for number in range(12):
            await _try_exchange(world, bytes([number]) * dice.randrange(1, 20000), 2)
            if dice.random() < 0.2:
                world.new_guest()
            if dice.random() < 0.2:
                world.new_host()
        world.to_host.damage = world.to_guest.damage = lambda piece: piece
        async with asyncio.timeout(30):
            # The half that heals last may only now find what the damage did to it.
            while not await _try_exchange(world, b"end" * 9000, 8):  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    run(main())


def test_a_changed_byte_ends_the_session_and_a_new_one_begins() -> None:
    async def main() -> None:
        world = World(piece_bytes=1 << 16)
        await world.both_up()
        lost: list[str] = []
        world.host.on_lost = lost.append
        stream = await world.host.open("echo")
        world.to_host.damage = lambda piece: piece[:-1] + bytes([piece[-1] ^ 1])
        await stream.write(b"hello")
        with pytest.raises(LinkError, match="damaged"):
            await stream.read()
        world.to_host.damage = lambda piece: piece
        await world.both_up()
        assert len(lost) == 1
        assert await exchange(world.host, b"again") == b"again"

    run(main())


def test_a_lost_frame_is_noticed_although_the_rest_is_sound() -> None:
    async def main() -> None:
        world = World(piece_bytes=1 << 16)
        await world.both_up()
        stream = await world.host.open("echo")
        world.to_host.damage = lambda _: b""
        await stream.write(b"one")
        await asyncio.sleep(0.1)
        world.to_host.damage = lambda piece: piece
        await stream.write(b"two")
        with pytest.raises(LinkError, match="missing"):
            await stream.read()

    run(main())


def test_half_a_frame_does_not_pass_what_trickles_after_it_for_life() -> None:
    async def main() -> None:
        world = World(keepalive_s=1, piece_bytes=1 << 16)
        await world.both_up()
        stream = await world.host.open("echo")
        world.to_host.damage = lambda piece: piece[:9000]
        await stream.write(bytes(15_000))
        await asyncio.sleep(0.01)
        world.to_host.damage = lambda piece: piece
        for _ in range(20):  # the answers to these fill up the frame that lacks its end
            await asyncio.sleep(0.5)
            if not stream.is_closed:
                stream.write_nowait(b"x")
        with pytest.raises(LinkError, match="does not answer"):
            stream.write_nowait(b"x")
        await world.both_up()
        assert await exchange(world.host, b"healed") == b"healed"

    run(main())


def test_a_vanished_peer_is_noticed_and_not_shouted_at() -> None:
    async def main() -> None:
        world = World(keepalive_s=15)
        await world.both_up()
        await asyncio.sleep(300)
        assert world.host.session_count == 1, "an idle session is left alone"
        stream = await world.host.open("echo")
        world.to_guest.stalled = True
        with pytest.raises(LinkError, match="does not answer"):
            await stream.read()
        await asyncio.sleep(3600)
        assert len(world.to_guest.queue) < 200_000
        world.to_guest.stalled = False
        world.to_guest.schedule()
        await world.both_up()
        assert await exchange(world.host, b"back") == b"back"

    run(main())


def test_versions_without_overlap_fail_clearly_until_a_better_peer_comes() -> None:
    async def main() -> None:
        world = World()
        world.guest.protocol._versions = (3, 4)
        world.new_host()
        with pytest.raises(LinkError, match="speaks versions 3 to 4 of its protocol, this one 1"):
            await world.host.wait_session()
        world.new_guest()
        await world.both_up()

    run(main())


def test_the_highest_common_version_is_spoken() -> None:
    async def main() -> None:
        world = World()
        world.guest.protocol._versions = (2, 9)
        world.host.protocol._versions = (1, 4)
        await world.both_up()
        assert (world.guest.version, world.host.version) == (4, 4)

    run(main())


def test_ones_own_greeting_thrown_back_is_no_peer() -> None:
    async def main() -> None:
        world = World()
        world.guest.close()
        world.to_guest.protocol = None
        world.new_host()
        world.to_host.put(bytes(world.to_guest.queue))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await world.host.wait_session()

    run(main())


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=4000))
def test_a_hostile_peer_gets_no_session_and_no_memory(noise: bytes) -> None:
    async def main() -> None:
        world = World()
        world.guest.close()
        world.to_guest.stalled = True
        for kind in range(12):
            payload = noise[kind * 40 : kind * 50]
            world.to_host.put(encode(kind, 1, 0, 0, payload) + payload + noise)
        await asyncio.sleep(60)
        assert not world.host.is_up
        assert len(world.to_guest.queue) < 200_000

    run(main())


def test_a_peer_that_never_reads_cannot_make_the_host_hoard() -> None:
    async def main() -> None:
        world = World(piece_bytes=1 << 16)
        await world.both_up()
        world.to_guest.stalled = True
        guest, mux = world.guest, world.guest._mux
        assert mux is not None
        for number in range(2, 60000, 2):
            guest.protocol.send(4, number, b"")
            if number % 500 == 0:
                await asyncio.sleep(0.05)
        await asyncio.sleep(5)
        assert world.to_guest.writer is not None
        assert world.to_guest.writer.peak < (1 << 20) + 300_000
        assert not world.host.is_up

    run(main())


def test_sessions_that_break_at_once_do_not_make_a_storm() -> None:
    async def main() -> None:
        world = World(piece_bytes=1 << 16)
        await world.both_up()
        world.to_host.damage = lambda piece: piece + b"garbage"
        before = world.to_guest.seen
        await asyncio.sleep(10)
        assert world.to_guest.seen - before < 3_000_000

    run(main())


def test_the_greeting_is_bounded() -> None:
    with pytest.raises(ValueError, match="hello"):
        Peer(role="host", hello=bytes(MAX_HELLO + 1))
    with pytest.raises(ValueError, match="role"):
        Peer(role="daemon")


def test_waiting_ends_when_the_connection_is_lost_or_closed() -> None:
    async def main() -> None:
        world = World()
        world.guest.close()
        world.new_host()
        waiting = asyncio.ensure_future(world.host.wait_session())
        await asyncio.sleep(0)
        world.host.protocol.connection_lost(OSError("gone"))
        with pytest.raises(LinkError, match="lost"):
            await waiting
        await world.host.closed()
        world.host.close()
        with pytest.raises(LinkError, match="closed"):
            await world.host.wait_session()
        with pytest.raises(LinkError, match="no session"):
            await world.host.open("echo")

    run(main())


def test_a_pipe_used_again_by_the_same_peer_begins_a_new_session() -> None:
    async def main() -> None:
        world = World()
        await world.both_up()
        transport = world.to_guest.writer
        assert transport is not None
        stream = await world.host.open("echo")
        world.host.protocol.connection_lost(None)
        with pytest.raises(LinkError, match="disconnected"):
            await stream.read()
        world.host.protocol.connection_made(transport)
        await world.host.wait_session()
        assert await exchange(world.host, b"x") == b"x"
        assert world.host.session_count == 2

    run(main())


def test_the_greeting_is_laid_out_as_it_always_was() -> None:
    """Agents of every version must understand it, so HELLO and the header never change."""

    async def main() -> None:
        world = World()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        reader = FrameReader()
        reader.feed(bytes(world.to_guest.queue))
        frame = reader.next_frame()
        assert frame is not None
        kind, stream, sequence, session, payload = frame
        assert (kind, stream, sequence, session) == (HELLO, 0, 0, 0)
        assert payload[8:] == bytes(8) + b"\x01\x01\x01host"

    run(main())


def test_frames_of_another_session_are_dropped() -> None:
    async def main() -> None:
        world = World()
        await world.both_up()
        world.to_host.put(encode(DATA, 1, 0, 12345, b"old") + b"old")
        assert await exchange(world.host, b"new") == b"new"
        assert world.host.session_count == 1

    run(main())
