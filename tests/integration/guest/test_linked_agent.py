"""The host's end of an agent: sessions that come and go, calls, and who else may call."""

from __future__ import annotations

import asyncio
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from arcbox_agent import VERSION
from arcbox_agent.agent_service import AgentService
from arcbox_agent.calls import methods
from arcbox_agent.cgroup import Cgroups
from arcbox_agent.clone import Clone
from arcbox_agent.guest_service import GuestService
from arcbox_agent.kernel import NoKernel
from arcbox_agent.link import Targets
from arcbox_agent.ports import NothingListensError
from arcbox_agent.watch import Watch
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
from arcboxd.errors import (
    AgentUnreachableError,
    InvalidArgumentError,
    TooLateError,
)
from arcboxd.guest import agent as agent_module
from arcboxd.guest.agent import LinkedAgent
from arcboxd.link.peer import Peer
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2, agent_pb2_grpc, common_pb2

if TYPE_CHECKING:
    from arcbox_agent.calls import MessageStream

AGENT = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
OURS = guest_pb2.DESCRIPTOR.services_by_name["GuestService"]
IDENTITY = Identity("ab" * 16, "dev", "", "me", 1000, ("key",), (), 1 << 30)


class Agent(AgentService):
    """An agent's published service, with one answer that is too long."""

    async def GetSystemInfo(  # noqa: N802
        self, _request: common_pb2.Empty
    ) -> agent_pb2.SystemInfo:
        return agent_pb2.SystemInfo(hostname="h" * 1000)


class Ours(GuestService):
    """An agent's own service, that does as the test says."""

    def __init__(self, guest: Guest, kernel: NoKernel, clone: Clone) -> None:
        super().__init__(kernel, Cgroups(""), clone, "", Watch())
        self._guest = guest

    async def Configure(  # noqa: N802
        self, request: guest_pb2.ConfigureRequest
    ) -> guest_pb2.ConfigureResponse:
        if self._guest.refusals:
            self._guest.refusals -= 1
            raise RuntimeError("not yet")
        self._guest.configured.append(request)
        return guest_pb2.ConfigureResponse(boot_id="b")

    async def WaitForPort(  # noqa: N802
        self, request: guest_pb2.WaitForPortRequest
    ) -> guest_pb2.WaitForPortResponse:
        if request.port == 24:
            await asyncio.sleep(3600)
        if request.port != 22:
            raise NothingListensError("nothing listens")
        return guest_pb2.WaitForPortResponse()

    async def WaitBooted(  # noqa: N802
        self, request: guest_pb2.WaitBootedRequest
    ) -> guest_pb2.WaitBootedResponse:
        assert request.timeout_millis == 2500
        return guest_pb2.WaitBootedResponse(failed=["x" * 1000] * 1000)

    async def Exec(  # noqa: N802
        self, stream: MessageStream[guest_pb2.ExecInput, guest_pb2.ExecOutput]
    ) -> None:
        first = await stream.recv_message()
        assert first is not None
        if first.start.argv[0] == "bad":
            raise InvalidArgumentError("no such user", hint="choose another")
        if first.start.argv[0] == "silent":
            return
        try:
            while (item := await stream.recv_message()) is not None:
                if item.HasField("stdin"):
                    await stream.send_message(guest_pb2.ExecOutput(stdout=item.stdin))
            if first.start.argv[0] == "sleep":
                await stream.send_message(guest_pb2.ExecOutput(stdout=b"begun"))
                await asyncio.sleep(3600)
            await stream.send_message(guest_pb2.ExecOutput(exit=guest_pb2.ExecExit(code=3)))
        except asyncio.CancelledError:
            self._guest.killed += 1
            raise


class Guest:
    """A guest's end: the port's socket, the link, and an agent's targets behind it."""

    def __init__(self, directory: Path) -> None:
        self.link_socket = directory / "link.sock"
        self.configured: list[guest_pb2.ConfigureRequest] = []
        self.refusals = 0
        self.killed = 0
        self.peers: list[Peer] = []
        kernel = NoKernel()
        clone = Clone(kernel, Cgroups(""), str(directory))
        self._targets = Targets(
            methods(
                (
                    (Agent(kernel, clone, "", Cgroups(""), Watch()), AGENT),
                    (Ours(self, kernel, clone), OURS),
                )
            ),
            kernel,
        )
        self._listener: asyncio.Server | None = None

    async def listen(self) -> None:
        def port() -> asyncio.Protocol:
            self.peers.append(Peer(role="guest", hello=b"test", accept=self._targets.accept))
            return self.peers[-1].protocol

        loop = asyncio.get_running_loop()
        self._listener = await loop.create_unix_server(port, str(self.link_socket))

    async def reboot(self) -> None:
        """Lose the connection, and be there again."""
        await self.stop()
        self.link_socket.unlink(missing_ok=True)
        await self.listen()

    async def stop(self) -> None:
        assert self._listener is not None
        self._listener.close()
        for peer in self.peers:
            peer.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="abx", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def guest(directory: Path) -> AsyncIterator[Guest]:
    guest = Guest(directory)
    await guest.listen()
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
    with pytest.raises(InvalidArgumentError, match="no such user") as caught:
        await anext(agent.exec(ExecSpec(("bad",)), nothing()))
    assert caught.value.hint == "choose another"
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


async def test_what_failed_at_boot_is_taken_as_data(agent: LinkedAgent) -> None:
    await agent.wait_ready(5)
    failed = await agent.wait_booted(2.5)
    assert (len(failed), {len(name) for name in failed}) == (64, {256})


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


async def test_a_ping_tells_the_version(agent: LinkedAgent) -> None:
    await agent.wait_ready(5)
    assert await agent.ping("y") == Pong("y", VERSION)


async def test_a_call_that_takes_too_long_is_cancelled(
    agent: LinkedAgent, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    await agent.wait_ready(5)
    monkeypatch.setattr(agent, "_call_s", 0.2)
    with pytest.raises(AgentUnreachableError, match=r"did not answer in 0\.2"):
        await agent.wait_for_port(24, 0.0)
    # The guest's end of it is gone too.
    async with asyncio.timeout(5):
        while guest.peers[-1].stream_count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_exec_without_an_end_is_an_error(agent: LinkedAgent) -> None:
    await agent.wait_ready(5)
    outputs = [o async for o in agent.exec(ExecSpec(("silent",)), nothing())]
    assert outputs == []


async def test_input_that_fails_ends_the_process(agent: LinkedAgent, guest: Guest) -> None:
    await agent.wait_ready(5)

    echoed = asyncio.Event()

    async def broken() -> AsyncIterator[ExecInput]:
        yield StdinData(b"x")
        await echoed.wait()
        raise InvalidArgumentError("the client said nonsense")

    with pytest.raises(InvalidArgumentError, match="nonsense"):  # noqa: PT012
        async for _ in agent.exec(ExecSpec(("cat",)), broken()):
            echoed.set()
    async with asyncio.timeout(5):
        while not guest.killed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
