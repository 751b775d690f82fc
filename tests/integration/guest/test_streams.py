"""What the daemon asks of a guest for Docker: the runtime's calls, and streams to its sockets."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from arcbox_agent.calls import methods
from arcbox_agent.kernel import NoKernel
from arcbox_agent.link import Targets
from arcboxd.domain.runtime import RuntimeAnswer, RuntimeStatus, ServiceStatus
from arcboxd.errors import LinkError, UnsupportedError
from arcboxd.guest.agent import LinkedAgent
from arcboxd.link.peer import Peer
from arcboxd.link.pump import pump
from arcboxd.wire.pb.arcbox.v1 import agent_pb2


class Agent:
    """AgentService's two calls about the runtime."""

    def __getattr__(self, name: str) -> object:
        if name in agent_pb2.DESCRIPTOR.services_by_name["AgentService"].methods_by_name:
            return self.GetRuntimeStatus  # for those that nobody asks here
        raise AttributeError(name)

    async def EnsureRuntime(  # noqa: N802
        self, request: agent_pb2.RuntimeEnsureRequest
    ) -> agent_pb2.RuntimeEnsureResponse:
        if not request.start_if_needed:
            raise UnsupportedError("not in this version")
        await asyncio.sleep(0.1)
        return agent_pb2.RuntimeEnsureResponse(ready=True, message="x" * 10**6, status="started")

    async def GetRuntimeStatus(  # noqa: N802
        self, request: agent_pb2.RuntimeStatusRequest
    ) -> agent_pb2.RuntimeStatusResponse:
        service = agent_pb2.ServiceStatus(name="runc", status="error", detail="gone")
        return agent_pb2.RuntimeStatusResponse(docker_ready=True, services=[service] * 1000)


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="abx", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def agent(directory: Path) -> AsyncIterator[LinkedAgent]:
    service = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
    targets = Targets(methods(((Agent(), service),)), NoKernel())
    peer = Peer(role="guest", accept=targets.accept)
    loop = asyncio.get_running_loop()
    path = directory / "link.sock"
    server = await loop.create_unix_server(lambda: peer.protocol, str(path))
    agent = LinkedAgent("dev", path, directory / "agent.sock", None, timeout_scale=1.0)
    await agent.open()
    await agent.wait_ready(5)
    yield agent
    await agent.close()
    peer.close()
    server.close()


async def test_runtime_calls(agent: LinkedAgent) -> None:
    answer = await agent.ensure_runtime(start_if_needed=True, timeout_s=5)
    assert answer == RuntimeAnswer(ready=True, endpoint="", message="x" * 8192, status="started")
    with pytest.raises(UnsupportedError, match="not in this version"):
        await agent.ensure_runtime(start_if_needed=False, timeout_s=5)
    status = await agent.runtime_status()
    assert isinstance(status, RuntimeStatus)
    assert status.services == (ServiceStatus("runc", "error", "gone"),) * 32


async def test_a_stream_that_nobody_takes_is_refused(agent: LinkedAgent, directory: Path) -> None:
    for target in (f"unix:{directory}/none.sock", f"unix:/{'x' * 200}", "tcp:127.0.0.1:1", "x:y"):
        with pytest.raises(LinkError):
            await agent.open_stream(target)


async def test_a_reset_goes_through_to_tcp(agent: LinkedAgent) -> None:
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    stream = await agent.open_stream(f"tcp:127.0.0.1:{listener.getsockname()[1]}")
    theirs, _ = await loop.sock_accept(listener)
    front = socket.create_server(("127.0.0.1", 0))
    front.setblocking(False)
    client = socket.create_connection(front.getsockname())
    client.setblocking(False)
    ours, _ = await loop.sock_accept(front)
    ours.setblocking(False)
    pumping = asyncio.ensure_future(pump(stream, ours))
    async with asyncio.timeout(5):
        await loop.sock_sendall(client, b"hello")
        assert await loop.sock_recv(theirs, 5) == b"hello"
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        with pytest.raises(ConnectionResetError):
            await loop.sock_recv(client, 5)
        await pumping
    for sock in (client, front, listener):
        sock.close()


async def test_a_cancelled_pump_leaves_nothing(agent: LinkedAgent, directory: Path) -> None:
    loop = asyncio.get_running_loop()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / "d.sock"))
    listener.listen()
    listener.setblocking(False)
    stream = await agent.open_stream(f"unix:{directory}/d.sock")
    theirs, _ = await loop.sock_accept(listener)
    ours, client = socket.socketpair()
    ours.setblocking(False)
    client.setblocking(False)
    pumping = asyncio.ensure_future(pump(stream, ours))
    await loop.sock_sendall(client, b"x")
    async with asyncio.timeout(5):
        assert await loop.sock_recv(theirs, 1) == b"x"
        pumping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pumping
        assert await loop.sock_recv(theirs, 1) == b""
        assert await loop.sock_recv(client, 1) == b""
    for sock in (client, theirs, listener):
        sock.close()
