"""The host's end of an agent: sessions that come and go, calls, and who else may call."""

from __future__ import annotations

import asyncio
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from arcboxd.domain.guest import (
    ExecData,
    ExecExit,
    ExecInput,
    ExecOutput,
    ExecSpec,
    Identity,
    Pong,
    StdinData,
    StdinEnd,
)
from arcboxd.errors import AgentUnreachableError, InvalidArgumentError, LinkError, TooLateError
from arcboxd.guest import agent as agent_module
from arcboxd.guest.agent import LinkedAgent
from arcboxd.link.mux import Handler
from arcboxd.link.peer import Peer, Stream, proxy
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2, agent_pb2_grpc, common_pb2

IDENTITY = Identity("ab" * 16, "dev", "me", 1000, ("key",), (), 1 << 30)


class Guest:
    """A guest's end: the port's socket, the link, and a gRPC server behind it."""

    knows_ping = False

    def __init__(self, directory: Path) -> None:
        self.link_socket = directory / "link.sock"
        self._grpc_socket = directory / "grpc.sock"
        self.configured: list[guest_pb2.ConfigureRequest] = []
        self.refusals = 0
        self.killed = 0
        self.peers: list[Peer] = []
        self._server = grpc.aio.server()
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        add = grpc.method_handlers_generic_handler
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Ping": unary(
                self.ping,
                agent_pb2.AgentPingRequest.FromString,
                agent_pb2.AgentPingResponse.SerializeToString,
            ),
            "GetSystemInfo": unary(
                self.info, common_pb2.Empty.FromString, agent_pb2.SystemInfo.SerializeToString
            ),
        }
        ours: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Configure": unary(
                self.configure,
                guest_pb2.ConfigureRequest.FromString,
                guest_pb2.ConfigureResponse.SerializeToString,
            ),
            "WaitForPort": unary(
                self.wait_for_port,
                guest_pb2.WaitForPortRequest.FromString,
                guest_pb2.WaitForPortResponse.SerializeToString,
            ),
            "Exec": stream(
                self.exec, guest_pb2.ExecInput.FromString, guest_pb2.ExecOutput.SerializeToString
            ),
        }
        self._server.add_generic_rpc_handlers(
            (add("arcbox.v1.AgentService", handlers), add("arcbox.ext.v1.GuestService", ours))
        )
        self._server.add_insecure_port(f"unix:{self._grpc_socket}")
        await self._server.start()
        await self.listen()

    async def listen(self) -> None:
        def port() -> asyncio.Protocol:
            self.peers.append(Peer(role="guest", hello=b"test", accept=self.accept))
            return self.peers[-1].protocol

        loop = asyncio.get_running_loop()
        self._listener = await loop.create_unix_server(port, str(self.link_socket))

    def accept(self, target: str) -> Handler:
        async def handle(stream: Stream) -> None:
            reader, writer = await asyncio.open_unix_connection(str(self._grpc_socket))
            stream.accept()
            await proxy(stream, reader, writer)

        async def pong(stream: Stream) -> None:
            await stream.write(b"by the link")

        if target == "ping" and self.knows_ping:
            return pong
        if target != "grpc":
            raise LinkError(f"no target {target!r}")
        return handle

    async def reboot(self) -> None:
        """Lose the connection, and be there again."""
        assert self._listener is not None
        self._listener.close()
        self.peers[-1].close()
        self.link_socket.unlink(missing_ok=True)
        await self.listen()

    async def stop(self) -> None:
        assert self._listener is not None
        self._listener.close()
        for peer in self.peers:
            peer.close()
        await self._server.stop(None)

    async def ping(self, request: agent_pb2.AgentPingRequest, context: object) -> object:
        return agent_pb2.AgentPingResponse(message=request.message, version="test")

    async def info(self, request: object, context: object) -> object:
        return agent_pb2.SystemInfo(hostname="h" * 1000)

    async def configure(
        self,
        request: guest_pb2.ConfigureRequest,
        context: grpc.aio.ServicerContext[object, object],
    ) -> object:
        if self.refusals:
            self.refusals -= 1
            await context.abort(grpc.StatusCode.INTERNAL, "not yet")
        self.configured.append(request)
        return guest_pb2.ConfigureResponse(boot_id="b")

    async def wait_for_port(
        self,
        request: guest_pb2.WaitForPortRequest,
        context: grpc.aio.ServicerContext[object, object],
    ) -> object:
        if request.port != 22:
            await context.abort(grpc.StatusCode.NOT_FOUND, "nothing listens")
        return guest_pb2.WaitForPortResponse()

    async def exec(
        self,
        inputs: AsyncIterator[guest_pb2.ExecInput],
        context: grpc.aio.ServicerContext[object, object],
    ) -> AsyncIterator[guest_pb2.ExecOutput]:
        start = (await anext(inputs)).start
        if start.argv[0] == "bad":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such user")
        try:
            async for item in inputs:
                if item.HasField("stdin"):
                    yield guest_pb2.ExecOutput(stdout=item.stdin)
            if start.argv[0] == "sleep":
                yield guest_pb2.ExecOutput(stdout=b"begun")
                await asyncio.sleep(3600)
            yield guest_pb2.ExecOutput(exit=guest_pb2.ExecExit(code=3))
        except asyncio.CancelledError:
            self.killed += 1
            raise


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="abx", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def guest(directory: Path) -> AsyncIterator[Guest]:
    guest = Guest(directory)
    await guest.start()
    yield guest
    await guest.stop()


@pytest.fixture
async def agent(directory: Path, guest: Guest) -> AsyncIterator[LinkedAgent]:
    path = directory / "agent.sock"
    agent = LinkedAgent("dev", guest.link_socket, path, IDENTITY, timeout_scale=1.0)
    await agent.open()
    yield agent
    await agent.close()
    await agent.close()
    assert not path.exists()


async def nothing() -> AsyncIterator[ExecInput]:
    items: tuple[ExecInput, ...] = ()
    for item in items:
        yield item


async def test_a_session_gives_the_guest_its_identity(agent: LinkedAgent, guest: Guest) -> None:
    guest.refusals = 2
    await agent.wait_ready(5)
    (request,) = guest.configured
    assert (request.hostname, request.machine_id) == ("dev", "ab" * 16)
    assert 32 <= len(request.entropy) <= 64
    assert request.clock_unix_nanos > 1_700_000_000 * 10**9
    assert (await agent.ping("hello")).message == "hello"
    assert len((await agent.system_info()).hostname) == 256


async def test_a_session_that_was_lost_is_made_anew(agent: LinkedAgent, guest: Guest) -> None:
    await agent.wait_ready(5)
    for _ in range(3):
        await guest.reboot()
        async with asyncio.timeout(5):
            while True:
                with suppress(AgentUnreachableError):
                    await agent.ping("again")
                    break
    first, second = guest.configured[0], guest.configured[-1]
    assert first.entropy != second.entropy
    assert len(guest.configured) == 4


async def test_exec(agent: LinkedAgent, guest: Guest) -> None:
    await agent.wait_ready(5)

    async def inputs() -> AsyncIterator[ExecInput]:
        yield StdinData(b"x" * 200_000)
        yield StdinEnd()

    outputs: list[ExecOutput] = [o async for o in agent.exec(ExecSpec(("cat",)), inputs())]
    data = b"".join(o.data for o in outputs if isinstance(o, ExecData))
    assert data == b"x" * 200_000
    assert outputs[-1] == ExecExit(3)
    with pytest.raises(InvalidArgumentError, match="no such user"):
        await anext(agent.exec(ExecSpec(("bad",)), nothing()))
    sleeping = agent.exec(ExecSpec(("sleep",)), nothing())
    assert await anext(sleeping) == ExecData("stdout", b"begun")
    await sleeping.aclose()
    async with asyncio.timeout(5):
        while not guest.killed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_ports(agent: LinkedAgent) -> None:
    await agent.wait_ready(5)
    assert await agent.wait_for_port(22, 1)
    assert not await agent.wait_for_port(23, 1)


async def test_any_client_of_the_same_user_reaches_the_agent(
    agent: LinkedAgent, directory: Path
) -> None:
    await agent.wait_ready(5)
    path = directory / "agent.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        stub: agent_pb2_grpc.AgentServiceAsyncStub = agent_pb2_grpc.AgentServiceStub(channel)
        assert (await stub.Ping(agent_pb2.AgentPingRequest(message="x"))).message == "x"


async def test_a_guest_that_is_not_there(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "_RECONNECT_S", 0.1)
    agent = LinkedAgent(
        "dev", directory / "link.sock", directory / "agent.sock", IDENTITY, timeout_scale=1.0
    )
    await agent.open()
    with pytest.raises(TooLateError, match="'dev'"):
        await agent.wait_ready(0.1)
    with pytest.raises(AgentUnreachableError, match="'dev'"):
        await agent.ping("x")
    await agent.close()


async def test_a_ping_goes_over_the_link_where_the_agent_knows_it(
    agent: LinkedAgent, guest: Guest
) -> None:
    await agent.wait_ready(5)
    assert (await agent.ping("x")).version == "test"
    guest.knows_ping = True
    assert await agent.ping("y") == Pong("y", "by the link")
