"""Docker's sockets on the host, with a real link to a Docker that is a few lines of a test."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import grpc.aio
import pytest

from arcboxd.docker import socket as docker_socket
from arcboxd.errors import AssetBuildError
from arcboxd.machines import runtime
from arcboxd.paths import Paths
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from arcboxd.wire.pb.arcbox.v1 import machine_pb2
from tests.fakes import World
from tests.integration.daemon.conftest import Daemon, start_daemon

MIB = 1 << 20


class Dockerd:
    """Does what the first line of a connection says."""

    def __init__(self) -> None:
        self.connections = 0
        self.open = 0
        self.taken = 0
        self.go_on = asyncio.Event()
        self.heard: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        with suppress(ConnectionError):
            verb = (await reader.readline()).strip().decode()
            await getattr(self, f"_{verb}")(reader, writer)
        writer.close()
        self.open -= 1

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write(b" end")

    async def _attach(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Say all there is before hearing anything, and hear on."""
        writer.write(b"banner")
        writer.write_eof()
        self.heard.append(await reader.read())

    async def _sink(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        total = 0
        while data := await reader.read(1 << 20):
            total += len(data)
        writer.write(str(total).encode())

    async def _source(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(800):
            writer.write(bytes(65536))
            await writer.drain()
            self.taken += 65536

    async def _deaf(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.go_on.wait()

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer without having read all, and hang up."""
        writer.write(b"no such thing")

    async def _break(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"half a sen")
        await writer.drain()
        writer.transport.abort()


@pytest.fixture
async def dockerd(directory: Path, world: World) -> AsyncIterator[Dockerd]:
    dockerd = Dockerd()
    path = directory / "dockerd.sock"
    server = await asyncio.start_unix_server(dockerd.serve, path, limit=1 << 20)
    world.runtime.dockerd = path
    yield dockerd
    dockerd.go_on.set()
    server.close()


@pytest.fixture
async def path(daemon: Daemon, dockerd: Dockerd) -> Path:
    """The socket of a machine that was never started."""
    return daemon.paths.machine(await daemon.create()).docker_socket


async def connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    # A deadline of our own, so that a test which hangs says where.
    async with asyncio.timeout(10):
        return await asyncio.open_unix_connection(path)


async def ask(path: Path, text: bytes) -> bytes:
    """Send all, half-close, and read to the end."""
    reader, writer = await connect(path)
    writer.write(text)
    writer.write_eof()
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def flood(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(bytes(65536))
        await writer.drain()


async def http(path: Path, request: bytes = b"GET /info HTTP/1.1\r\n\r\n") -> tuple[bytes, str]:
    """Give the status line, and the message of the body."""
    head, _, body = (await ask(path, request)).partition(b"\r\n\r\n")
    assert b"Connection: close" in head
    return head.split(b"\r\n")[0], json.loads(body)["message"] if body else ""


async def start(daemon: Daemon, ref: str = "dev") -> None:
    await daemon.machine.Start(machine_pb2.StartMachineRequest(id=ref))


async def ensured(daemon: Daemon, ref: str = "dev", *, start: bool = True) -> tuple[str, str]:
    request = host_pb2.EnsureMachineRuntimeRequest(id=ref, start_if_needed=start)
    answer = await daemon.host.EnsureRuntime(request)
    assert answer.ready == (answer.status != "failed")
    return answer.status, answer.message


async def test_first_connections_share_one_start(path: Path, world: World, daemon: Daemon) -> None:
    answers = await asyncio.gather(*(ask(path, b"echo\n%d" % i) for i in range(20)))
    assert answers == [b"%d end" % i for i in range(20)]
    (config,) = world.configs
    assert config.runtime_disk is None
    assert world.launched["dev"].runtime_disk is not None
    assert world.runtime.asked == [("dev", False), ("dev", True)]
    assert await ask(path, b"echo\nagain") == b"again end"
    assert len(world.runtime.asked) == 2
    await daemon.machine.Stop(machine_pb2.StopMachineRequest(id="dev"))
    assert await ask(path, b"echo\n") == b" end"
    assert world.configs[1].runtime_disk is not None, "from now on it is there from the start"


async def test_a_client_that_gives_up_stops_nothing(
    path: Path, world: World, daemon: Daemon
) -> None:
    world.runtime.gate = asyncio.Event()
    _, impatient = await connect(path)
    impatient.write(b"echo\n")
    patient = asyncio.ensure_future(ask(path, b"echo\nx"))
    async with asyncio.timeout(5):
        while ("dev", True) not in world.runtime.asked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    impatient.close()
    await impatient.wait_closed()
    world.runtime.gate.set()
    assert await patient == b"x end"
    assert len(world.configs) == 1


async def test_a_guest_that_reboots_is_waited_for(path: Path, world: World) -> None:
    await ask(path, b"echo\n")
    world.runtime.ready.clear()
    world.agent_ready = False
    waiting = asyncio.ensure_future(ask(path, b"echo\nx"))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    world.agent_ready = True
    assert await waiting == b"x end"


async def test_either_end_may_fall_silent_first(path: Path, dockerd: Dockerd) -> None:
    reader, writer = await connect(path)
    writer.write(b"attach\n")
    async with asyncio.timeout(5):
        assert await reader.read() == b"banner"
    writer.write(b"typed after its end")
    writer.write_eof()
    async with asyncio.timeout(5):
        while not dockerd.heard:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert dockerd.heard == [b"typed after its end"]
    writer.close()


async def test_hundreds_at_once(path: Path, dockerd: Dockerd) -> None:
    held = [await connect(path) for _ in range(300)]
    for number, (_, writer) in enumerate(held):
        writer.write(b"echo\n%d" % number)
    async with asyncio.timeout(10):
        for number, (reader, _) in enumerate(held):
            assert await reader.readexactly(len(str(number))) == b"%d" % number
    assert dockerd.open == 300
    for _, writer in held:
        writer.close()
    async with asyncio.timeout(5):
        while dockerd.open:  # noqa: ASYNC110 - those who hang up are seen to do so
            await asyncio.sleep(0.01)


async def test_much_goes_through_both_ways(path: Path) -> None:
    up = ask(path, b"sink\n" + bytes(50 * MIB))
    down = ask(path, b"source\n")
    counted, received = await asyncio.gather(up, down)
    assert counted == str(50 * MIB).encode()
    assert received == bytes(50 * MIB)


async def test_what_nobody_reads_is_not_taken(path: Path, dockerd: Dockerd) -> None:
    await ask(path, b"echo\n")
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, str(path))
    await loop.sock_sendall(sock, b"deaf\n")
    sent, quiet = 0, 0
    while quiet < 20:
        try:
            sent += sock.send(bytes(65536))
            quiet = 0
        except BlockingIOError:
            quiet += 1
            await asyncio.sleep(0.01)
    assert sent < 4 * MIB
    sock.close()
    _, writer = await connect(path)
    writer.write(b"source\n")
    assert isinstance(writer.transport, asyncio.Transport)
    writer.transport.pause_reading()
    before = -1
    while dockerd.taken != before:
        before = dockerd.taken
        await asyncio.sleep(0.2)
    assert dockerd.taken < 4 * MIB
    writer.close()


async def test_an_answer_before_all_was_sent_is_not_lost(path: Path) -> None:
    await ask(path, b"echo\n")
    for _ in range(20):
        reader, writer = await connect(path)
        writer.write(b"refuse\n" + bytes(MIB))
        async with asyncio.timeout(5):
            assert await reader.readexactly(13) == b"no such thing"
            # Whoever goes on sending is told so.
            with pytest.raises(ConnectionError):
                await flood(writer)
        writer.close()


async def test_a_broken_connection_is_broken_for_both(path: Path, dockerd: Dockerd) -> None:
    assert await ask(path, b"break\n") in {b"half a sen", b""}
    reader, writer = await connect(path)
    writer.write(b"echo\nx")
    await reader.readexactly(1)
    writer.transport.abort()
    async with asyncio.timeout(5):
        while dockerd.open:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_runtime_that_does_not_start_is_told_as_docker_tells_errors(
    path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.runtime.failure = "dockerd: it ended with status 1: no such disk"
    assert await http(path) == (
        b"HTTP/1.1 503 Service Unavailable",
        "Docker is not ready: dockerd: it ended with status 1: no such disk",
    )
    asked = len(world.runtime.asked)
    assert (await http(path, b"HEAD /_ping HTTP/1.1\r\n\r\n"))[1] == ""
    big = b"POST /build HTTP/1.1\r\nContent-Length: 9000000\r\n\r\n" + bytes(MIB)
    assert "no such disk" in (await http(path, big))[1]
    assert len(world.runtime.asked) == asked, "it was asked a moment ago"
    if shutil.which("docker"):
        process = await asyncio.create_subprocess_exec(
            *("docker", "-H", f"unix://{path}", "ps"),
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "HOME": str(path.parent)},
        )
        _, said = await process.communicate()
        assert b"no such disk" in said
    monkeypatch.setattr(docker_socket, "_REMEMBER_S", 0.0)
    await asyncio.sleep(2.1)
    world.runtime.failure = ""
    assert await ask(path, b"echo\n") == b" end"


async def test_a_machine_that_does_not_start_says_why(path: Path, world: World) -> None:
    world.dies_at_start, world.agent_ready = True, False
    line, message = await http(path)
    assert line.startswith(b"HTTP/1.1 503")
    assert "ended before its agent answered" in message


async def test_nobody_undoes_a_stop(path: Path, daemon: Daemon, world: World) -> None:
    await ask(path, b"echo\n")
    world.shutdown_ends = world.powerdown_ends = False
    world.runtime.ready.clear()
    stopping = asyncio.ensure_future(_stop(daemon))
    await daemon.until("stopping")
    assert "its stop is under way" in (await http(path))[1]
    world.vms["dev"].die()
    await stopping
    assert await daemon.state() == "stopped"


async def _stop(daemon: Daemon) -> None:
    await daemon.machine.Stop(machine_pb2.StopMachineRequest(id="dev"))


async def test_too_many_connections_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_socket, "MAX_CONNECTIONS", 2)
    held = [await connect(path) for _ in range(2)]
    for reader, writer in held:
        writer.write(b"echo\nx")
        await reader.readexactly(1)
    assert "2 connections" in (await http(path))[1]
    held[0][1].close()
    await held[0][1].wait_closed()
    async with asyncio.timeout(5):
        while await ask(path, b"echo\n") != b" end":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    held[1][1].close()


async def test_the_default_machine_is_made_when_it_is_first_used(
    daemon: Daemon, dockerd: Dockerd, world: World
) -> None:
    path = daemon.paths.docker_socket
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    request = host_pb2.MachineRuntimeStatusRequest()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await daemon.host.GetRuntimeStatus(request)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    answers = await asyncio.gather(*(ask(path, b"echo\n") for _ in range(5)))
    assert answers == [b" end"] * 5
    listed = await daemon.machine.List(machine_pb2.ListMachinesRequest(all=True))
    assert [(m.name, m.state) for m in listed.machines] == [("default", "running")]
    assert (await daemon.host.GetRuntimeStatus(request)).docker_ready
    assert await ensured(daemon, "") == ("reused", "")
    assert len(world.configs) == 1


async def test_a_machine_has_its_socket_as_long_as_its_record(
    path: Path, daemon: Daemon, world: World
) -> None:
    extra = await daemon.host.InspectExtra(host_pb2.InspectExtraRequest(id="dev"))
    assert Path(extra.docker_socket) == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    clone = await daemon.host.CloneMachine(host_pb2.CloneMachineRequest(id="dev", name="copy"))
    other = daemon.paths.machine(clone.id).docker_socket
    assert await ask(other, b"echo\n") == b" end"
    await daemon.machine.Remove(machine_pb2.RemoveMachineRequest(id="copy", force=True))
    assert not other.parent.exists()
    assert path.exists()


async def test_the_next_daemon_serves_on(paths: Paths, world: World, dockerd: Dockerd) -> None:
    async with AsyncExitStack() as first:
        daemon = await start_daemon(paths, world, first)
        path = paths.machine(await daemon.create()).docker_socket
        reader, writer = await connect(path)
        writer.write(b"echo\nx")
        await reader.readexactly(1)
    assert await reader.read() == b""
    writer.close()
    assert not path.exists()
    assert not paths.docker_socket.exists()
    asked = len(world.runtime.asked)
    async with AsyncExitStack() as second:
        daemon = await start_daemon(paths, world, second)
        await daemon.until("running")
        assert await ask(path, b"echo\n") == b" end"
        async with asyncio.timeout(5):
            while world.runtime.asked[asked:] != [("dev", False)]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert len(world.configs) == 1


async def test_a_runtime_comes_back_with_its_machine(
    path: Path, daemon: Daemon, world: World
) -> None:
    await start(daemon)
    assert not world.runtime.asked, "it never had one"
    assert await ensured(daemon, start=False) == ("failed", "dockerd is not running")
    assert await ensured(daemon) == ("started", "")
    assert await ensured(daemon, start=False) == ("reused", "")
    await _stop(daemon)
    assert await ensured(daemon, start=False) == ("failed", "machine 'dev' is stopped")
    status = await daemon.host.GetRuntimeStatus(host_pb2.MachineRuntimeStatusRequest(id="dev"))
    assert (status.docker_ready, status.detail) == (False, "machine 'dev' is stopped")
    assert [(s.name, s.status) for s in status.services] == [
        (name, "not_ready") for name in ("containerd", "dockerd", "runc")
    ]
    assert not world.runtime.ready
    await start(daemon)
    async with asyncio.timeout(5):
        while not world.runtime.ready:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    world.agents["dev"].new_session()
    assert not world.runtime.ready
    async with asyncio.timeout(5):
        while not world.runtime.ready:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_disk_is_built_for_who_lacks_it_only_while_the_agent_waits(
    path: Path, daemon: Daemon, world: World
) -> None:
    world.runtime.bundle = None
    world.runtime.build_gate = asyncio.Event()
    world.runtime.patient = False
    call = asyncio.ensure_future(ensured(daemon))
    async with asyncio.timeout(5):
        while not world.runtime.built or len(world.runtime.asked) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    world.runtime.build_gate.set()
    assert await call == ("started", "")
    assert world.runtime.asked[2:] == [("dev", True)], "it is asked again with the disk"


async def test_why_the_disk_cannot_be_built(
    path: Path, daemon: Daemon, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_OWN_S", 0.1)
    world.runtime.bundle = None
    world.runtime.build_fails = AssetBuildError("the mirror does not answer")
    with pytest.raises(grpc.aio.AioRpcError, match="the mirror does not answer"):
        await ensured(daemon)
    assert await daemon.state() == "running"
    # A guest that has a Docker of its own needs no disk.
    world.runtime.gate = asyncio.Event()
    world.runtime.patient, world.runtime.needs_disk = False, False
    monkeypatch.setattr(runtime, "_OWN_S", 5.0)
    asked = len(world.runtime.asked)
    call = asyncio.ensure_future(ensured(daemon))
    async with asyncio.timeout(5):
        while len(world.runtime.asked) < asked + 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    world.runtime.gate.set()
    assert await call == ("started", "")
