"""What a guest tells of its ports, over a real link: taken as data, and for one session."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from arcboxd.domain.ports import (
    PortBinding,
    PortsPublished,
    PortsWithdrawn,
    RuntimeWanted,
    Synced,
)
from arcboxd.errors import AgentUnreachableError, LinkError, UnsupportedError
from arcboxd.guest.agent import LinkedAgent
from arcboxd.link.call import CALL, Call
from arcboxd.link.peer import Peer, Stream
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2, common_pb2

WATCH = CALL + "/arcbox.ext.v1.GuestService/Watch"


def published(container_id: str, name: str, *hosts: str) -> guest_pb2.GuestEvent:
    return guest_pb2.GuestEvent(
        ports=guest_pb2.PublishedPorts(
            changed=agent_pb2.PortBindingsChanged(
                container_id=container_id,
                bindings=[
                    common_pb2.PortBinding(
                        container_port=80, host_port=8080, protocol="tcp", host_ip=host
                    )
                    for host in hosts
                ],
            ),
            targets=[guest_pb2.PortTarget(address="172.17.0.2", port=80) for _ in hosts],
            name=name,
        )
    )


class Guest:
    """Answers Watch with what the test queues; a LinkError ends the session."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "link.sock"
        self.queue: asyncio.Queue[guest_pb2.GuestEvent | Exception] = asyncio.Queue()
        self.watchers = 0
        self.peer: Peer | None = None

    def port(self) -> asyncio.Protocol:
        self.peer = Peer(role="guest", accept=self._accept)
        return self.peer.protocol

    def _accept(self, target: str) -> Callable[[Stream], Awaitable[None]]:
        if target != WATCH:
            raise LinkError(f"no target {target!r}")
        return self._watch

    async def _watch(self, stream: Stream) -> None:
        call = Call(stream)
        assert await call.receive() == b""
        self.watchers += 1
        task = asyncio.current_task()
        assert task is not None
        stream.on_failed = task.cancel  # as the agent does
        try:
            while True:
                item = await self.queue.get()
                if isinstance(item, UnsupportedError):
                    await call.fail(item)
                    return
                if isinstance(item, Exception):
                    assert self.peer is not None
                    self.peer.close()
                    return
                await call.send(item.SerializeToString())
        finally:
            self.watchers -= 1


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="abx", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def guest(directory: Path) -> AsyncIterator[Guest]:
    guest = Guest(directory)
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(guest.port, str(guest.socket))
    yield guest
    server.close()
    if guest.peer is not None:
        guest.peer.close()


@pytest.fixture
async def agent(directory: Path, guest: Guest) -> AsyncIterator[LinkedAgent]:
    agent = LinkedAgent("dev", guest.socket, directory / "agent.sock", None, timeout_scale=1.0)
    await agent.open()
    await agent.wait_ready(5)
    yield agent
    await agent.close()


async def test_what_a_guest_tells_becomes_values(agent: LinkedAgent, guest: Guest) -> None:
    removed = agent_pb2.PortBindingsRemoved(container_id="c1")
    for event in (
        published("c1", "web", "0.0.0.0", "127.0.0.1"),  # noqa: S104
        published("c2", "default/web"),
        published("c3", "n" * 5000, *["1" * 500] * 1500),
        published("", "nobody"),
        guest_pb2.GuestEvent(),
        guest_pb2.GuestEvent(synced=guest_pb2.Synced()),
        guest_pb2.GuestEvent(runtime_wanted=guest_pb2.RuntimeWanted()),
        guest_pb2.GuestEvent(removed=removed),
    ):
        guest.queue.put_nowait(event)
    events = agent.watch()
    async with aclosing(events), asyncio.timeout(5):
        got = [await anext(events) for _ in range(6)]
    first, second, third, *rest = got
    assert first == PortsPublished(
        "c1",
        "container:web",
        (
            PortBinding("tcp", "0.0.0.0", 8080, "172.17.0.2", 80),  # noqa: S104
            PortBinding("tcp", "127.0.0.1", 8080, "172.17.0.2", 80),
        ),
    )
    assert second == PortsPublished("c2", "service:default/web", ())
    assert isinstance(third, PortsPublished)
    assert len(third.source) < 200
    assert len(third.bindings) == 1000
    assert len(third.bindings[0].host_address) < 100
    assert rest == [Synced(), RuntimeWanted(), PortsWithdrawn("c1")]
    # Whoever watches no more is not told any more.
    async with asyncio.timeout(5):
        while guest.watchers:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_watch_ends_with_its_session_and_the_next_one_has_another(
    agent: LinkedAgent, guest: Guest
) -> None:
    guest.queue.put_nowait(guest_pb2.GuestEvent(synced=guest_pb2.Synced()))
    guest.queue.put_nowait(LinkError("gone"))
    async with aclosing(agent.watch()) as events:
        assert await anext(events) == Synced()
        with pytest.raises(AgentUnreachableError):
            await anext(events)
    guest.queue.put_nowait(guest_pb2.GuestEvent(synced=guest_pb2.Synced()))
    async with asyncio.timeout(5), aclosing(agent.watch()) as events:
        assert await anext(events) == Synced()


async def test_an_agent_that_cannot_do_it_says_so(agent: LinkedAgent, guest: Guest) -> None:
    guest.queue.put_nowait(UnsupportedError("not in this version"))
    with pytest.raises(UnsupportedError, match="not in this version"):
        await anext(agent.watch())
