"""The targets of the link, over a real session in one process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from arcbox_agent.agent_service import AgentService
from arcbox_agent.calls import methods
from arcbox_agent.cgroup import Cgroups
from arcbox_agent.clone import Clone
from arcbox_agent.kernel import NoKernel
from arcbox_agent.link import Targets
from arcbox_agent.watch import Watch
from arcboxd.errors import LinkError
from arcboxd.link.peer import Peer
from arcboxd.wire.pb.arcbox.v1 import agent_pb2
from tests.agent_client import agent_client


class ClockKernel(NoKernel):
    """Keeps what the clock was to be set to."""

    def __init__(self) -> None:
        self.settings: list[int] = []

    def set_clock(self, unix_nanos: int) -> None:
        self.settings.append(unix_nanos)
        if unix_nanos == 1:
            raise OSError("no")


@pytest.fixture
def kernel() -> ClockKernel:
    return ClockKernel()


def _service(kernel: ClockKernel) -> AgentService:
    cgroups = Cgroups("")
    return AgentService(kernel, Clone(kernel, cgroups, ""), "", cgroups, Watch())


@pytest.fixture
async def host(kernel: ClockKernel) -> AsyncIterator[Peer]:
    """The host's end of a link whose other end serves the agent's targets."""
    service = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
    served = methods([(_service(kernel), service)])
    host = Peer(role="host")
    guest = Peer(role="guest", accept=Targets(served, kernel).accept)
    loop = asyncio.get_running_loop()
    for end, peer in zip(socket.socketpair(), (host, guest), strict=True):
        end.setblocking(False)
        await loop.create_connection(lambda peer=peer: peer.protocol, sock=end)  # type: ignore[misc]
    async with asyncio.timeout(5):
        await host.wait_session()
    yield host
    host.close()
    guest.close()
    await asyncio.sleep(0.05)


async def test_grpc_over_the_link(host: Peer, tmp_path: Path) -> None:
    async with agent_client(host, tmp_path / "s") as client:
        reply = await client.Ping(agent_pb2.AgentPingRequest(message="x" * 1_000_000))
        assert len(reply.message) == 1_000_000


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_sockets_of_the_guest(host: Peer, tmp_path: Path, kind: str) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        await writer.drain()
        writer.close()

    if kind == "unix":
        listener = await asyncio.start_unix_server(echo, tmp_path / "e")
        target = f"unix:{tmp_path}/e"
    else:
        listener = await asyncio.start_server(echo, "127.0.0.1", 0)
        target = f"tcp:localhost:{listener.sockets[0].getsockname()[1]}"
    stream = await host.open(target)
    await stream.write(b"hello")
    await stream.close_write()
    assert await stream.read() == b"HELLO"
    assert await stream.read() == b""
    listener.close()
    await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "target", ["", "nonsense", "unix:relative", "tcp:127.0.0.1:99999", "tcp::80", "unix:/no/such"]
)
async def test_other_targets_are_refused(host: Peer, target: str) -> None:
    with pytest.raises(LinkError):
        async with asyncio.timeout(5):
            await host.open(target)
    with contextlib.suppress(LinkError):
        await asyncio.sleep(0)


async def test_the_clock(host: Peer, kernel: ClockKernel) -> None:
    stream = await host.open("clock")
    before = time.time_ns()
    later = before + 10**12
    # Only asked for; right already; off; not possible: several at a time, and cut anywhere.
    times = (0, before, later, 1)
    sent = b"".join(each.to_bytes(8, "big", signed=True) for each in times)
    await stream.write(sent[:3])
    await stream.write(sent[3:21])
    await stream.write(sent[21:])
    received = b""
    while len(received) < len(sent):
        received += await stream.read()
    answers = [int.from_bytes(received[i : i + 8], "big") for i in range(0, len(received), 8)]
    assert all(before <= answer <= time.time_ns() for answer in answers)
    assert kernel.settings[-2:] == [later, 1]
    await stream.close_write()
    assert await stream.read() == b""
