"""A loop whose clock jumps, and a pipe between two peers that loses, cuts, damages and stalls."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TypeVar

from arcboxd.link.mux import Handler
from arcboxd.link.peer import Peer, Stream
from arcboxd.link.session import Session

T = TypeVar("T")


class _JumpSelector(selectors.EpollSelector):
    """Never waits: what it would have waited is added to the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("wedged: nothing is left that could happen")
        self.now += max(timeout, 0)
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        return ready


class JumpLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumper = _JumpSelector()
        super().__init__(self.jumper)
        self.errors: list[dict[str, object]] = []
        self.set_exception_handler(lambda _, context: self.errors.append(context))

    def time(self) -> float:
        return self.jumper.now


def run(main: Coroutine[object, object, T]) -> T:
    """Run to the end in no time; fail if anything was left behind or raised in a callback."""
    loop = JumpLoop()
    try:
        result = loop.run_until_complete(main)
    finally:
        for task in (left := asyncio.all_tasks(loop)):
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
    assert not loop.errors, loop.errors
    return result


class Pipe:
    """One direction of a port: bytes queue, and arrive in pieces after a delay.

    `capacity` bounds what it takes before the writer is congested. `stalled` holds everything back.
    """

    def __init__(self, *, seed: int = 0, piece_bytes: int = 4096, delay_s: float = 0.001) -> None:
        self.queue = bytearray()
        self.protocol: Session | None = None
        self.seen = 0
        self.stalled = False
        self.damage: Callable[[bytes], bytes] = lambda piece: piece
        self.writer: FakeTransport | None = None
        self._random = random.Random(seed)  # noqa: S311
        self._piece_bytes = piece_bytes
        self._delay_s = delay_s
        self._due = False
        self._flowing = False

    def put(self, data: bytes) -> None:
        self.queue += data
        self.schedule()

    def schedule(self) -> None:
        if self.queue and not self._due and not self.stalled:
            self._due = True
            delay_s = 1e-5 if self._flowing else self._delay_s
            asyncio.get_running_loop().call_later(delay_s, self._deliver)

    def _deliver(self) -> None:
        self._due = False
        if self.stalled or self.protocol is None:
            return
        size = self._random.randint(1, self._piece_bytes)
        piece = bytes(self.queue[:size])
        del self.queue[:size]
        self.seen += len(piece)
        piece = self.damage(piece)
        if piece:
            self.protocol.data_received(piece)
        if self.writer is not None:
            self.writer.emptied()
        self._flowing = True
        self.schedule()
        self._flowing = False


class FakeTransport(asyncio.Transport):
    def __init__(self, protocol: Session, out: Pipe) -> None:
        super().__init__()
        self.protocol = protocol
        self.out = out
        self.high = 65536
        self.paused = False
        self.closed = False
        self.peak = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.closed:
            return
        self.out.put(bytes(data))
        self.peak = max(self.peak, len(self.out.queue))
        if len(self.out.queue) > self.high and not self.paused:
            self.paused = True
            self.protocol.pause_writing()

    def emptied(self) -> None:
        if self.paused and len(self.out.queue) <= self.high // 4:
            self.paused = False
            self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        # The pipe itself holds up to 64 KiB, as a socket or a virtqueue does.
        return max(0, len(self.out.queue) - 65536)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = (high or 65536) + 65536

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self.closed


class World:
    """A host and a guest, each replaceable at any moment, with the two pipes of a port between."""

    def __init__(
        self,
        *,
        accept: Callable[[str], Handler] | None = None,
        keepalive_s: float = 0,
        seed: int = 0,
        piece_bytes: int = 4096,
    ) -> None:
        self.accept = accept or (lambda _: echo)
        self.keepalive_s = keepalive_s
        self._dead: list[Peer] = []  # a process that died, whose tasks must not be collected
        self.to_guest = Pipe(seed=seed, piece_bytes=piece_bytes)
        self.to_host = Pipe(seed=seed + 1, piece_bytes=piece_bytes)
        self.host = self.new_host()
        self.guest = self.new_guest()

    def new_host(self, frozen: int = 0) -> Peer:
        """Replace the host's end as a new daemon does; what is in the pipes stays there."""
        if (writer := self.to_guest.writer) is not None:
            writer.closed = True
        self.host = Peer(
            role="host",
            hello=b"host",
            accept=self.accept,
            keepalive_s=self.keepalive_s,
            frozen=frozen,
        )
        self._dead.append(self.host)
        _connect(self.host, self.to_guest, self.to_host)
        return self.host

    def new_guest(self) -> Peer:
        """Replace the guest's end as a restarted agent does."""
        if (writer := self.to_host.writer) is not None:
            writer.closed = True
        self.guest = Peer(role="guest", hello=b"guest", accept=self.accept)
        self._dead.append(self.guest)
        _connect(self.guest, self.to_host, self.to_guest)
        return self.guest

    async def both_up(self, within_s: float = 20) -> None:
        async with asyncio.timeout(within_s):
            await until(lambda: self.host.is_up and self.guest.is_up)


def _connect(peer: Peer, out: Pipe, into: Pipe) -> None:
    transport = FakeTransport(peer.protocol, out)
    out.writer = transport
    into.protocol = peer.protocol
    peer.protocol.connection_made(transport)
    into.schedule()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.001)


async def echo(stream: Stream) -> None:
    while data := await stream.read():
        await stream.write(data)


async def exchange(peer: Peer, data: bytes, target: str = "echo") -> bytes:
    """Send data through an echo, half-close, and return what came back."""
    stream = await peer.open(target)

    async def send() -> None:
        await stream.write(data)
        await stream.close_write()

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        parts = [part async for part in chunks(stream)]
    return b"".join(parts)


async def chunks(stream: Stream) -> AsyncIterator[bytes]:
    while data := await stream.read():
        yield data
