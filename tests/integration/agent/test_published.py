"""Watch: what the agent tells of Docker's published ports, with a stand-in for Docker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from arcbox_agent import watch as watch_module
from arcbox_agent.docker_api import Docker, DockerError, NoSuchContainerError
from arcbox_agent.watch import Watch
from arcboxd.errors import PreconditionError
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2
from tests.integration.agent.fake_docker import FakeDocker

Event = guest_pb2.GuestEvent
ANY = "0.0.0.0"  # noqa: S104 - what a container asked for


class Caller:
    """The daemon's end of a call of Watch."""

    def __init__(self, watch: Watch, socket: str) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.task = asyncio.ensure_future(watch.serve(self, socket))

    async def recv_message(self) -> guest_pb2.WatchGuestRequest:
        return guest_pb2.WatchGuestRequest()

    async def send_message(self, message: Event) -> None:
        self.events.put_nowait(message)

    async def next(self) -> Event:
        async with asyncio.timeout(10):
            return await self.events.get()

    async def kind(self) -> str | None:
        return (await self.next()).WhichOneof("event")

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
def socket(tmp_path: Path) -> str:
    return str(tmp_path / "d.sock")


@pytest.fixture
async def docker(socket: str) -> AsyncIterator[FakeDocker]:
    docker = FakeDocker()
    await docker.listen(socket)
    yield docker
    await docker.die()


@pytest.fixture
async def caller(docker: FakeDocker, socket: str) -> AsyncIterator[Caller]:
    caller = Caller(Watch(), socket)
    yield caller
    await caller.end()


def published(event: Event) -> list[tuple[int, str, str, int, str, int]]:
    ports = event.ports
    assert len(ports.targets) == len(ports.changed.bindings)
    return [
        (b.container_port, b.protocol, b.host_ip, b.host_port, t.address, t.port)
        for b, t in zip(ports.changed.bindings, ports.targets, strict=True)
    ]


async def test_all_that_there_is_comes_first(docker: FakeDocker, socket: str) -> None:
    docker.put("a", {"80/tcp": [(ANY, "8080"), ("::", "8080")], "81/tcp": []}, "172.17.0.2")
    docker.put("b", {"53/udp": [("127.0.0.1", "5353")]}, "172.17.0.3")
    caller = Caller(Watch(), socket)
    found = {
        event.ports.changed.container_id: event for event in [await caller.next() for _ in "ab"]
    }
    assert published(found["a"]) == [(80, "tcp", ANY, 8080, "172.17.0.2", 80)]
    assert published(found["b"]) == [(53, "udp", "127.0.0.1", 5353, "172.17.0.3", 53)]
    assert found["a"].ports.name == "a-name"
    assert await caller.kind() == "synced"
    await caller.end()


async def test_each_change_is_told_once(docker: FakeDocker, caller: Caller) -> None:
    assert await caller.kind() == "synced"
    assert set(docker.filters) == {"type", "event"}
    docker.run("a", {"80/tcp": [("", "80"), ("192.168.1.5", "81")]}, "172.17.0.2")
    assert published(await caller.next()) == [
        (80, "tcp", ANY, 80, "172.17.0.2", 80),
        (80, "tcp", "192.168.1.5", 81, "172.17.0.2", 80),
    ]
    docker.tell("network", "connect", "a")  # which changes nothing
    docker.run("quiet", {"80/tcp": []}, "172.17.0.9")
    docker.put("a", {"80/tcp": [("", "80")]}, "172.18.0.2")
    docker.tell("network", "connect", "a")
    assert published(await caller.next()) == [(80, "tcp", ANY, 80, "172.18.0.2", 80)]
    docker.remove("quiet")
    docker.remove("a")
    event = await caller.next()
    assert event.removed.container_id == "a"
    docker.run("z", {"80/tcp": [("", "80")]}, "")
    assert published(await caller.next()) == [(80, "tcp", ANY, 80, "", 80)]
    assert caller.events.empty()


async def test_a_container_that_was_stopped_has_no_ports(
    docker: FakeDocker, caller: Caller
) -> None:
    assert await caller.kind() == "synced"
    docker.run("a", {"80/tcp": [("", "80")]}, "172.17.0.2")
    assert await caller.kind() == "ports"
    docker.containers["a"]["State"] = {"Running": False}
    docker.tell("container", "die", "a")
    assert await caller.kind() == "removed"


async def test_after_a_restart_only_what_changed_is_told(
    docker: FakeDocker, caller: Caller, socket: str
) -> None:
    assert await caller.kind() == "synced"
    for name in ("same", "other", "gone"):
        docker.run(name, {"80/tcp": [("", "80")]}, "172.17.0.2")
        assert await caller.kind() == "ports"
    await docker.die()
    docker.put("other", {"80/tcp": [("", "81")]}, "172.17.0.2")
    del docker.containers["gone"]
    await docker.listen(socket)
    kinds = {(await caller.next()).WhichOneof("event") for _ in range(2)}
    assert kinds == {"removed", "ports"}
    docker.run("new", {"80/tcp": [("", "82")]}, "172.17.0.2")
    assert (await caller.next()).ports.changed.container_id == "new"


async def test_without_docker_it_is_synced_at_once_and_looks_again(socket: str) -> None:
    watch = Watch()
    caller = Caller(watch, socket)
    assert await caller.kind() == "synced"
    docker = FakeDocker()
    docker.put("a", {"80/tcp": [("", "80")]}, "172.17.0.2")
    await docker.listen(socket)
    watch.docker_changed.set()
    assert await caller.kind() == "ports"
    await caller.end()
    await docker.die()


async def test_a_second_watcher_ends_the_first(docker: FakeDocker, socket: str) -> None:
    watch = Watch()
    first = Caller(watch, socket)
    assert await first.kind() == "synced"
    second = Caller(watch, socket)
    async with asyncio.timeout(5):
        await first.task
    assert await second.kind() == "synced"
    waiting = asyncio.ensure_future(_wait_for_disk(watch, timeout_s=20))
    assert await second.kind() == "runtime_wanted"
    assert first.events.empty()
    waiting.cancel()
    await second.end()


async def test_a_watcher_that_cannot_be_told_ends(docker: FakeDocker, socket: str) -> None:
    class Broken(Caller):
        async def send_message(self, message: Event) -> None:
            raise ConnectionError("gone")

    caller = Broken(Watch(), socket)
    with pytest.raises(ConnectionError):
        await caller.task
    async with asyncio.timeout(5):
        while docker.listeners:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_answers_of_both_kinds_of_framing(docker: FakeDocker, socket: str) -> None:
    client = Docker(socket)
    docker.put("a", {}, "")
    for docker.chunked in (True, False):
        answer = await client.get("/containers/a/json", 5)
        assert isinstance(answer, dict)
        assert answer["Id"] == "a"
        assert await client.ping(5)
    with pytest.raises(NoSuchContainerError):
        await client.get("/containers/b/json", 5)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n{}",
        b"HTTP/1.1 200 " + b"x" * 100_000,
        b'HTTP/1.1 500 No\r\nContent-Length: 17\r\n\r\n{"message":"why"}',
    ],
)
async def test_an_answer_that_makes_no_sense_is_an_error(socket: str, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(serve, socket)
    client = Docker(socket)
    with pytest.raises(DockerError):
        await client.get("/x", 5)
    assert await client.ping(5) is None or answer.startswith(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2"
    )
    server.close()


async def test_silence_has_a_deadline(docker: FakeDocker, socket: str) -> None:
    docker.silent = True
    client = Docker(socket)
    assert await client.ping(0.1) is None
    with pytest.raises(DockerError, match="did not answer"):
        await client.get("/x", 0.1)
    with pytest.raises(DockerError, match="did not answer"):
        async with client.events({}, 0.1):
            pass
    with pytest.raises(DockerError, match="Nothing answers"):
        await Docker(socket + "x").get("/x", 1)


async def test_a_disk_that_nobody_can_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "_WATCHER_S", 0.2)
    watch = Watch()
    with pytest.raises(PreconditionError, match="no daemon watches") as caught:
        await _wait_for_disk(watch, timeout_s=20)
    assert "connected" in caught.value.hint


async def test_a_disk_that_does_not_come(socket: str) -> None:
    watch = Watch()
    caller = Caller(watch, socket)
    with pytest.raises(PreconditionError, match="data did not come within"):
        await _wait_for_disk(watch, timeout_s=0.3)
    asked = [caller.events.get_nowait().WhichOneof("event") for _ in range(caller.events.qsize())]
    assert sorted(map(str, asked)) == ["runtime_wanted", "synced"]
    await caller.end()


async def _wait_for_disk(watch: Watch, *, timeout_s: float) -> None:
    event = Event(runtime_wanted=guest_pb2.RuntimeWanted())
    await watch.wait_for_disk(event, lambda: False, content="data", timeout_s=timeout_s)
