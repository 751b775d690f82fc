"""EnsureRuntime and GetRuntimeStatus of the real agent, with stand-ins for the daemons."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from arcbox_agent.containerd_health import is_serving
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2
from tests.integration.agent.conftest import Agent, Client
from tests.integration.agent.fake_docker import FakeDocker

REPOSITORY = Path(__file__).parents[3]
HEAD = f"#!{sys.executable}\nimport os, sys\nsys.path[:0] = {sys.path!r} + [{str(REPOSITORY)!r}]\n"
CONTAINERD = """
import re, signal, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import grpc
from grpc_health.v1 import health, health_pb2_grpc
config = Path(sys.argv[2]).read_text()
print("containerd runs", flush=True)
if (Path(sys.argv[2]).parent / "broken").exists():
    print("no such thing as a disk", flush=True)
    sys.exit(7)
server = grpc.server(ThreadPoolExecutor(2))
health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
socket = re.search('address = "(.*)"', config)[1]
Path(socket).parent.mkdir(exist_ok=True, parents=True)
server.add_insecure_port(f"unix:{socket}")
server.start()
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while True:
    time.sleep(60)
"""
DOCKERD = """
import runpy
runpy.run_module("tests.integration.agent.fake_docker", run_name="__main__")
"""
RUNC = "print('runc version 1.2.3')"
START = agent_pb2.RuntimeEnsureRequest(start_if_needed=True)
LOOK = agent_pb2.RuntimeEnsureRequest()
STATUS = agent_pb2.RuntimeStatusRequest()


def install(root: Path) -> None:
    """Put the stand-ins where the bundle would be."""
    folder = root / "run/arcbox/runtime"
    (folder / "bin").mkdir(parents=True)
    for name, text in (("containerd", CONTAINERD), ("dockerd", DOCKERD), ("runc", RUNC)):
        path = folder / "bin" / name
        path.write_text(HEAD + text)
        path.chmod(0o755)
    (folder / "versions.json").write_text('{"containerd": "1.7.0", "dockerd": "26.0.0"}')


class Machine:
    """An agent that can be killed and begun anew on the same files."""

    def __init__(self, folder: Path, cgroup: str) -> None:
        self.folder = folder
        self.root = folder / "root"
        self._cgroup = cgroup
        self.agent = Agent(folder, cgroup)
        self._channel = self._connect()

    def _connect(self) -> grpc.aio.Channel:
        channel = grpc.aio.insecure_channel(f"unix:{self.agent.socket}")
        self.client = Client(channel, self.root, self.agent.process.pid)
        return channel

    async def kill_agent(self) -> None:
        await self._channel.close()
        self.agent.process.kill()
        self.agent.stop()
        self.agent.socket.unlink()
        keep = self.folder / "kept"
        self.root.rename(keep)
        self.agent = Agent(self.folder, self._cgroup)
        shutil.rmtree(self.root)
        keep.rename(self.root)
        self._channel = self._connect()

    async def ensure(
        self, request: agent_pb2.RuntimeEnsureRequest
    ) -> agent_pb2.RuntimeEnsureResponse:
        return await self.client.agent.EnsureRuntime(request)

    async def services(self) -> dict[str, tuple[str, str]]:
        status = await self.client.agent.GetRuntimeStatus(STATUS)
        assert status.endpoint == "unix:///var/run/docker.sock"
        found = {each.name: (each.status, each.detail) for each in status.services}
        assert set(found) == {"containerd", "dockerd", "runc"}
        assert status.containerd_ready == (found["containerd"][0] == "ready")
        assert status.docker_ready == (found["dockerd"][0] == "ready")
        return found

    def pid(self, name: str) -> int:
        record = json.loads((self.root / "run/arcbox/services" / f"{name}.json").read_text())
        pid: int = record["pid"]
        return pid

    async def end(self) -> None:
        await self._channel.close()
        self.agent.stop()
        for name in ("dockerd", "containerd"):
            with suppress(FileNotFoundError, ProcessLookupError):
                if pid := self.pid(name):
                    os.kill(pid, signal.SIGKILL)
        if self._cgroup:
            for group in Path(self._cgroup, "arcbox").glob("service-*"):
                await until(lambda group=group: not (group / "cgroup.procs").read_text())  # type: ignore[misc]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(15):
        while not condition():  # noqa: ASYNC110 - files and processes have no event
            await asyncio.sleep(0.02)


@pytest.fixture
async def machine(cgroup2: str) -> AsyncIterator[Machine]:
    folder = Path(tempfile.mkdtemp(prefix="rt"))
    machine = Machine(folder, cgroup2)
    (machine.root / "var/run").mkdir(parents=True)
    yield machine
    await machine.end()
    shutil.rmtree(folder)


async def test_who_only_looks_starts_nothing(machine: Machine) -> None:
    answer = await machine.ensure(LOOK)
    assert (answer.ready, answer.status) == (False, "failed")
    assert "not started" in answer.message
    assert (await machine.services())["dockerd"] == ("not_ready", "not started")


async def test_each_daemon_that_watches_is_asked_for_the_disk(machine: Machine) -> None:
    ensuring = asyncio.ensure_future(_ensure(machine))  # before anybody watches
    for _ in range(2):
        watching = machine.client.guest.Watch(guest_pb2.WatchGuestRequest())
        events = aiter(watching)
        kinds = {(await anext(events)).WhichOneof("event") for _ in range(2)}
        assert kinds == {"synced", "runtime_wanted"}
        assert not ensuring.done()
        watching.cancel()
    install(machine.root)
    answer = await ensuring
    assert (answer.ready, answer.status) == (True, "started"), answer.message


async def _ensure(machine: Machine) -> agent_pb2.RuntimeEnsureResponse:
    return await machine.ensure(START)


async def test_twenty_callers_start_it_once(machine: Machine) -> None:
    install(machine.root)
    callers = [asyncio.ensure_future(_ensure(machine)) for _ in range(20)]
    await asyncio.sleep(0.05)
    callers[0].cancel()  # who began it: the others are served all the same
    answers = await asyncio.gather(*callers[1:])
    assert all(answer.ready for answer in answers)
    assert {answer.status for answer in answers} == {"started"}
    assert answers[0].endpoint == "unix:///var/run/docker.sock"
    logs = machine.root / "var/log/arcbox"
    assert (logs / "containerd.log").read_text().count("containerd runs") == 1
    assert (logs / "dockerd.log").read_text().count("dockerd runs") == 1
    again = await machine.ensure(START)
    assert (again.ready, again.status) == (True, "reused")
    assert await machine.services() == {
        "containerd": ("ready", "1.7.0 at /run/containerd/containerd.sock"),
        "dockerd": ("ready", "26.0.0 at /var/run/docker.sock"),
        "runc": ("ready", f"1.2.3 at {machine.root}/run/arcbox/runtime/bin/runc"),
    }


async def test_a_failure_names_the_part_and_its_last_words(machine: Machine) -> None:
    install(machine.root)
    (machine.root / "run/arcbox/broken").touch()
    answer = await machine.ensure(START)
    assert (answer.ready, answer.status) == (False, "failed")
    assert "containerd does not start: it ended with status 7" in answer.message
    assert "no such thing as a disk" in answer.message
    (machine.root / "run/arcbox/broken").unlink()
    assert (await machine.ensure(START)).ready


async def test_what_is_killed_comes_back(machine: Machine) -> None:
    install(machine.root)
    assert (await machine.ensure(START)).ready
    for name in ("dockerd", "containerd"):
        pid = machine.pid(name)
        os.kill(pid, signal.SIGKILL)
        await until(lambda name=name, pid=pid: machine.pid(name) not in (0, pid))  # type: ignore[misc]
        assert (await machine.ensure(START)).ready


async def test_a_containerd_that_dockerd_has_not_found_yet(machine: Machine) -> None:
    install(machine.root)
    assert (await machine.ensure(START)).ready
    (machine.root / "run/arcbox/apart").touch()
    assert (await machine.ensure(LOOK)).ready, "they began together"
    os.kill(machine.pid("containerd"), signal.SIGKILL)
    async with asyncio.timeout(10):
        while (await machine.services())["containerd"][0] != "ready":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    found = await machine.services()
    assert found["dockerd"] == ("not_ready", "has not found the new containerd yet")
    (machine.root / "run/arcbox/apart").unlink()
    assert (await machine.ensure(LOOK)).ready


async def test_what_hangs_is_not_ready(machine: Machine) -> None:
    install(machine.root)
    assert (await machine.ensure(START)).ready
    for name in ("dockerd", "containerd"):
        os.kill(machine.pid(name), signal.SIGSTOP)
    answer = await machine.ensure(LOOK)
    assert (answer.ready, answer.status) == (False, "failed")
    found = await machine.services()
    for name in ("dockerd", "containerd"):
        assert found[name][0] == "not_ready"
        assert "does not answer" in found[name][1]
        os.kill(machine.pid(name), signal.SIGCONT)
    assert (await machine.ensure(LOOK)).ready


async def test_the_daemons_outlive_the_agent(machine: Machine) -> None:
    install(machine.root)
    assert (await machine.ensure(START)).ready
    pids = [machine.pid(name) for name in ("dockerd", "containerd")]
    await machine.kill_agent()
    answer = await machine.ensure(START)
    assert (answer.ready, answer.status) == (True, "reused")
    assert [machine.pid(name) for name in ("dockerd", "containerd")] == pids


async def test_a_docker_of_the_guest_s_own_is_used(machine: Machine) -> None:
    install(machine.root)
    own = FakeDocker()
    await own.listen(str(machine.root / "var/run/docker.sock"))
    answer = await machine.ensure(START)
    assert (answer.ready, answer.status) == (True, "reused")
    assert "distribution's own" in answer.message
    assert not (machine.root / "run/arcbox/services/dockerd.json").exists()
    assert (await machine.services())["dockerd"][0] == "ready"
    await own.die()


async def test_the_guest_s_own_settings_count(machine: Machine) -> None:
    install(machine.root)
    own = machine.root / "etc/docker/daemon.json"
    own.parent.mkdir()
    own.write_text("{")
    assert "/etc/docker/daemon.json is not JSON" in (await machine.ensure(START)).message
    own.write_text('{"hosts": ["tcp://127.0.0.1:2375", "fd://"], "debug": true, "group": "staff"}')
    assert (await machine.ensure(START)).ready
    merged = json.loads((machine.root / "run/arcbox/docker.json").read_text())
    socket = f"unix://{machine.root}/var/run/docker.sock"
    assert merged["hosts"] == [socket, "tcp://127.0.0.1:2375"]
    assert (merged["debug"], merged["group"], merged["live-restore"]) == (True, "staff", True)


async def test_a_shutdown_ends_containers_in_order(machine: Machine) -> None:
    install(machine.root)
    assert (await machine.ensure(START)).ready
    pid = machine.pid("dockerd")
    await machine.client.agent.Shutdown(agent_pb2.ShutdownRequest(timeout_seconds=5))
    log = machine.root / "var/log/arcbox/dockerd.log"
    await until(lambda: "dockerd ends" in log.read_text())
    assert log.read_text().splitlines()[-2:] == ["reloaded False", "dockerd ends"]
    await until(lambda: not Path(f"/proc/{pid}").exists())
    assert (await machine.services())["dockerd"][0] == "not_ready"


async def test_containerd_s_health_is_asked_by_hand(machine: Machine, tmp_path: Path) -> None:
    install(machine.root)
    assert (await machine.ensure(START)).ready
    socket = str(machine.root / "run/containerd/containerd.sock")
    assert await is_serving(socket, 5)
    assert not await is_serving(socket + "x", 5)
    server = grpc.aio.server()  # which has no health service
    server.add_insecure_port(f"unix:{tmp_path}/s")
    await server.start()
    assert not await is_serving(f"{tmp_path}/s", 5)
    await server.stop(None)
