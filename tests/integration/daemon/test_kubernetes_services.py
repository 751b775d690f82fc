"""Node ports of a machine's cluster on the host: a real API server, real keys, real connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from arcboxd.domain.machine import NewMachine
from arcboxd.domain.ports import PortBinding, PortState, PortsWithdrawn
from arcboxd.hypervisor.base import Forward
from arcboxd.kubernetes.service_objects import PORTS_MAX
from arcboxd.machines import kubernetes_port, kubernetes_services
from arcboxd.machines.service import Machines
from arcboxd.paths import Paths
from tests.api_server import ApiServer, Keys, service, serving
from tests.fakes import FakeVm, World
from tests.integration.daemon.test_ports import forwarded, free_port, until
from tests.integration.daemon.test_recovery import _reopen

GUEST = "127.0.0.2"
"""Stands for the guest's own address."""
OPEN = PortState.OPEN


class Network:
    """QEMU's network: what connects to a forward is connected to the guest's own address."""

    def __init__(self) -> None:
        self._servers: dict[Forward, asyncio.Server] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def add(self, forward: Forward) -> None:
        if forward.protocol != "tcp":
            return

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer), contextlib.suppress(OSError):
                inner, outer = await asyncio.open_connection(GUEST, forward.guest_port)
                ways = {asyncio.ensure_future(_copy(reader, outer))}
                ways.add(asyncio.ensure_future(_copy(inner, writer)))
                try:
                    # Whoever ends one way ends both.
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
                    outer.close()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.get_running_loop().create_task(serve(reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        server = await asyncio.start_server(connected, forward.host_address, forward.host_port)
        self._servers[forward] = server

    def remove(self, forward: Forward) -> None:
        if (server := self._servers.pop(forward, None)) is not None:
            server.close()

    async def close(self) -> None:
        for forward in tuple(self._servers):
            self.remove(forward)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("keys") / "one")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("keys") / "other")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arcboxd.machines.context._FIRST_COMMAND_S", 0.0)
    monkeypatch.setattr(kubernetes_services, "_RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(kubernetes_services, "_RETRY_MOST_S", 0.05)
    monkeypatch.setattr(kubernetes_port, "FIRST_PORT", free_port())


@pytest.fixture(autouse=True)
async def network(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Network]:
    network = Network()
    add, remove = FakeVm.add_forward, FakeVm.remove_forward

    async def adding(self: FakeVm, forward: Forward) -> None:
        await network.add(forward)
        await add(self, forward)

    async def removing(self: FakeVm, forward: Forward) -> None:
        await remove(self, forward)
        network.remove(forward)

    monkeypatch.setattr(FakeVm, "add_forward", adding)
    monkeypatch.setattr(FakeVm, "remove_forward", removing)
    yield network
    await network.close()


@dataclass
class Cluster:
    """A running machine with a cluster, whose node ports are followed."""

    machines: Machines
    api: ApiServer
    id: str

    def begin(self) -> None:
        ctx = self.machines.context
        machine = ctx.registry.get(self.id)
        kubernetes_services.begin(ctx, machine, ctx.running[self.id])

    async def end(self) -> None:
        await kubernetes_services.end(self.machines.context, self.id)

    async def ports(self) -> dict[int, PortState]:
        return await service_ports(self.machines)

    async def until(self, *ports: int) -> None:
        await until_open(self.machines, *ports)


async def service_ports(machines: Machines) -> dict[int, PortState]:
    found = await machines.ports("dev")
    return {p.host_port: p.state for p in found if p.source.startswith("service:")}


async def until_open(machines: Machines, *ports: int) -> None:
    async with asyncio.timeout(10):
        while await service_ports(machines) != dict.fromkeys(ports, OPEN):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
async def cluster(
    machines: Machines, world: World, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Cluster]:
    world.cluster.supported = True
    world.cluster.text = keys.kubeconfig()
    made = await machines.create(NewMachine("dev"))
    await machines.start("dev")
    async with serving(keys.server(), GUEST) as api:
        monkeypatch.setattr(kubernetes_port, "GUEST_PORT", api.port)
        await kubernetes_port.reserve(machines.context, machines.inspect("dev"))
        machines.context.paths.machine(made.id).kubernetes_marker.touch()
        cluster = Cluster(machines, api, made.id)
        cluster.begin()
        yield cluster
        # Before the API server: nothing is left to be tried again.
        await kubernetes_services.leave(machines.context, made.id)


@pytest.fixture
async def web() -> AsyncIterator[int]:
    """Serve something in the guest, as kube-proxy does at a node port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, GUEST, 0)
    yield int(server.sockets[0].getsockname()[1])
    server.close()


async def asked(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"hello\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def tried(world: World, times: int) -> None:
    """Wait until the cluster was tried so many times more: each begins with the kubeconfig."""
    asked = world.cluster.asked
    before = asked.count("kubeconfig")
    await until(lambda: asked.count("kubeconfig") >= before + times)


def refused(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


async def test_a_node_port_is_reached_from_the_host(
    cluster: Cluster, world: World, web: int
) -> None:
    other, hidden = free_port(), free_port()
    cluster.api.put(service("web", web))
    cluster.api.put(service("hidden", hidden, kind="ClusterIP"))
    cluster.api.put(service("dns", other, kind="LoadBalancer", protocol="UDP"))
    await cluster.until(web, other)
    assert await asked(web) == b"HELLO\n"
    ports = {p.host_port: p for p in await cluster.machines.ports("dev")}
    shown = ports[web]
    assert (shown.source, shown.host_address) == ("service:default/web", "127.0.0.1")
    # By the guest's own address, which the hypervisor's forwards reach.
    assert (shown.guest_address, shown.guest_port) == ("", web)
    assert Forward("udp", "127.0.0.1", other, other) in world.forwards["dev"]
    assert hidden not in ports


async def test_a_service_is_followed_through_its_changes(
    cluster: Cluster, world: World, web: int
) -> None:
    before, second = free_port(), free_port()
    cluster.api.put(service("web", before))
    await cluster.until(before)
    cluster.api.put(service("web", web, second))
    await cluster.until(web, second)
    assert await asked(web) == b"HELLO\n"
    await until(lambda: refused(before))
    # Another has a port that this one gives up.
    cluster.api.put(service("web", second))
    cluster.api.put(service("other", web))
    await cluster.until(web, second)
    assert await asked(web) == b"HELLO\n"
    cluster.api.put(service("other", web, kind="ClusterIP"))
    await cluster.until(second)
    await until(lambda: refused(web))
    cluster.api.remove("web")
    await cluster.until()
    await until(lambda: forwarded(world) == {(_api_port(cluster), cluster.api.port)})
    # It was told all of it, and listed once.
    assert (cluster.api.lists, len(cluster.api.watches)) == (1, 1)


def _api_port(cluster: Cluster) -> int:
    return kubernetes_port.find(cluster.machines.context, cluster.id)


async def test_an_api_server_that_is_away_takes_nothing_with_it(
    cluster: Cluster, world: World, keys: Keys, web: int
) -> None:
    gone, new = free_port(), free_port()
    cluster.api.put(service("web", web))
    cluster.api.put(service("gone", gone))
    await cluster.until(web, gone)
    await cluster.api.close()
    cluster.api.remove("gone")
    cluster.api.put(service("new", new))
    await tried(world, 3)
    assert await cluster.ports() == {web: OPEN, gone: OPEN}
    assert await asked(web) == b"HELLO\n"
    await cluster.api.open(keys.server())
    await cluster.until(web, new)
    await until(lambda: refused(gone))


async def test_a_broken_connection_is_made_anew(cluster: Cluster, web: int) -> None:
    await until(lambda: bool(cluster.api.watches))
    await cluster.api.cut()
    cluster.api.put(service("web", web))
    await cluster.until(web)
    assert cluster.api.lists > 1


@pytest.mark.parametrize("way", ["status", "event", "nonsense"])
async def test_a_version_that_is_not_known_any_more_means_to_list(
    cluster: Cluster, web: int, way: str
) -> None:
    gone = free_port()
    cluster.api.put(service("gone", gone))
    await cluster.until(gone)
    if way == "status":
        cluster.api.watch_status = "410 Gone"
        cluster.api.say(None)
        await until(lambda: cluster.api.lists > 2)
        # Unseen by any watch.
        del cluster.api.services["gone"]
        cluster.api.services["web"] = service("web", web)
        await cluster.until(web)
        cluster.api.watch_status = "200 OK"
    else:
        del cluster.api.services["gone"]
        cluster.api.services["web"] = service("web", web)
        await until(lambda: bool(cluster.api.watches))
        error = b'{"type":"ERROR","object":{"code":410}}\n'
        cluster.api.say(error if way == "event" else b"?" * 100_000 + b"\n")
        await cluster.until(web)
    assert await asked(web) == b"HELLO\n"
    cluster.api.remove("web")
    await cluster.until()


async def test_a_watch_that_ends_in_order_goes_on(cluster: Cluster, web: int) -> None:
    await until(lambda: bool(cluster.api.watches))
    cluster.api.put(service("web", web))
    await cluster.until(web)
    cluster.api.tell("BOOKMARK", {"metadata": {"resourceVersion": "170"}})
    cluster.api.say(None)
    await until(lambda: len(cluster.api.watches) > 1)
    assert cluster.api.watches[1] == "170"
    assert cluster.api.lists == 1


async def test_another_cluster_has_other_keys(
    cluster: Cluster, world: World, keys: Keys, others: Keys, web: int
) -> None:
    old = free_port()
    cluster.api.put(service("old", old))
    await cluster.until(old)
    await cluster.api.close()
    cluster.api.services.clear()
    cluster.api.put(service("web", web))
    # Its server begins before the agent knows of its keys.
    seen = len(cluster.api.requests)
    await cluster.api.open(others.server())
    await tried(world, 3)
    assert len(cluster.api.requests) == seen
    world.cluster.text = others.kubeconfig()
    await cluster.until(web)


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"apiVersion": "v1"}), "\x1b[2J" * 10_000])
async def test_a_hostile_kubeconfig_is_told_once_and_never_used(
    cluster: Cluster,
    world: World,
    keys: Keys,
    text: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await until(lambda: bool(cluster.api.watches))
    web = free_port()
    world.cluster.text = text
    cluster.api.put(service("web", web))
    await cluster.api.cut()
    await tried(world, 4)
    told = [r.getMessage() for r in caplog.records if "are not followed" in r.getMessage()]
    warned = [r for r in caplog.records if "are not followed" in r.getMessage() and r.levelno >= 30]
    assert len(warned) == 1
    assert all(len(line) < 500 and "\x1b" not in line for line in told)
    world.cluster.text = keys.kubeconfig()
    await cluster.until(web)


async def test_a_guest_cannot_speak_for_services(cluster: Cluster, world: World, web: int) -> None:
    cluster.api.put(service("web", web))
    await cluster.until(web)
    guest, mine = world.guests["dev"], free_port()
    guest.tell(PortsWithdrawn("kubernetes/default/web"))
    guest.tell(PortsWithdrawn("kubernetes"))
    guest.run("kubernetes/default/other", PortBinding("tcp", "0.0.0.0", free_port(), "", 80))  # noqa: S104
    guest.run("kubernetesque", PortBinding("tcp", "0.0.0.0", mine, "127.0.0.1", 80))  # noqa: S104
    await until(lambda: mine in {host for host, _ in forwarded(world)})
    assert await cluster.ports() == {web: OPEN}
    # A new session, in which the guest tells all that its containers have.
    watched = guest.watched
    guest.lose()
    await until(lambda: guest.watched > watched)
    guest.end("kubernetesque")
    await until(lambda: mine not in {host for host, _ in forwarded(world)})
    assert await cluster.ports() == {web: OPEN}
    assert await asked(web) == b"HELLO\n"


async def test_ports_end_with_the_cluster_and_come_back_with_it(
    cluster: Cluster, world: World, web: int
) -> None:
    cluster.api.put(service("web", web))
    await cluster.until(web)
    await cluster.end()
    await cluster.end()
    await cluster.until()
    await until(lambda: refused(web))
    requests = len(cluster.api.requests)
    cluster.api.put(service("web", web))
    # The guest's next session does not begin it, either.
    world.agents["dev"].new_session()
    await asyncio.sleep(0.1)
    assert len(cluster.api.requests) == requests
    cluster.begin()
    cluster.begin()
    await cluster.until(web)
    assert await asked(web) == b"HELLO\n"
    assert cluster.api.lists == 2


async def test_a_guest_that_began_anew_is_listed_anew(
    cluster: Cluster, world: World, web: int
) -> None:
    await until(lambda: bool(cluster.api.watches))
    # As after a reboot: the connection stands, and nothing will ever come over it.
    cluster.api.services["web"] = service("web", web)
    world.agents["dev"].new_session()
    await cluster.until(web)


async def test_a_machine_that_stops_is_not_followed(
    cluster: Cluster, network: Network, web: int
) -> None:
    cluster.api.put(service("web", web))
    await cluster.until(web)
    ctx = cluster.machines.context
    running, machine = ctx.running[cluster.id], ctx.registry.get(cluster.id)
    await cluster.machines.stop("dev")
    assert await cluster.ports() == {}
    assert ctx.service_ports == {}
    # A start of the cluster that answers only now.
    kubernetes_services.begin(ctx, machine, running)
    assert ctx.service_ports == {}
    # QEMU's process took its forwards with it; at its next start the cluster is followed again.
    await network.close()
    await cluster.machines.start("dev")
    await cluster.until(web)
    assert await asked(web) == b"HELLO\n"
    await cluster.machines.remove("dev", force=True)
    assert ctx.service_ports == {}


async def test_another_daemon_takes_over(
    cluster: Cluster, world: World, paths: Paths, web: int
) -> None:
    gone = free_port()
    cluster.api.put(service("web", web))
    cluster.api.put(service("gone", gone))
    await cluster.until(web, gone)
    await cluster.machines.close()
    # Meanwhile nobody follows, and what was open stays so.
    assert {(web, web), (gone, gone)} < forwarded(world)
    assert await asked(web) == b"HELLO\n"
    cluster.api.remove("gone")
    async with AsyncExitStack() as stack:
        again = await _reopen(paths, world, stack)
        await until_open(again, web)
        await until(lambda: (gone, gone) not in forwarded(world))
        assert await asked(web) == b"HELLO\n"
        await kubernetes_services.leave(again.context, cluster.id)


async def test_a_guest_has_so_many_and_no_more(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_services, "MAX_FORWARDS", 2)
    ports = [free_port() for _ in range(4)]
    for at, port in enumerate(ports):
        cluster.api.put(service(f"s{at}", port))
    await cluster.until(*ports[:2])
    # Room that one gives up is another's at its next change, or the next list.
    cluster.api.remove("s0")
    cluster.api.put(service("s3", ports[3]))
    await cluster.until(ports[1], ports[3])
    cluster.api.put(service("s3", *range(20_000, 20_000 + PORTS_MAX + 50)))
    async with asyncio.timeout(10):
        while len(await cluster.ports()) != 1 + PORTS_MAX:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await cluster.machines.context.ports.of(cluster.id, "dev").settled(10)
