"""Forwards are right after all that happens to guests, machines, daemons and other programs."""
# ruff: noqa: S104 - compared, or meant to be open

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import grpc
import pytest

from arcboxd import errors
from arcboxd.domain.machine import MachineState, NewMachine
from arcboxd.domain.ports import (
    Port,
    PortBinding,
    PortsPublished,
    PortState,
    RuntimeWanted,
    UserForward,
)
from arcboxd.hypervisor.base import Forward
from arcboxd.machines.events import PortChanged
from arcboxd.machines.service import Machines
from arcboxd.paths import Paths
from arcboxd.ports import forwards as engine
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from arcboxd.wire.pb.arcbox.v1 import machine_pb2
from arcboxd.wire.status import from_rpc_error
from tests.fakes import World
from tests.integration.daemon.conftest import Daemon
from tests.integration.daemon.test_recovery import _reopen

OPEN, TAKEN, WAITING = PortState.OPEN, PortState.TAKEN, PortState.WAITING


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arcboxd.machines.context._FIRST_COMMAND_S", 0.0)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def own(host_port: int, guest_port: int = 80, **fields: str) -> UserForward:
    values = {"protocol": "tcp", "host_address": "", "guest_address": "", **fields}
    return UserForward(host_port=host_port, guest_port=guest_port, **values)


def container(host_port: int, address: str = "0.0.0.0", port: int = 80) -> PortBinding:
    return PortBinding("tcp", address, host_port, "127.0.0.1", port)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def states(machines: Machines, ref: str = "") -> dict[int, PortState]:
    return {p.host_port: p.state for p in await machines.ports(ref) if p.source != "ssh"}


async def until_ports(machines: Machines, wanted: dict[int, PortState], ref: str = "") -> None:
    async with asyncio.timeout(5):
        while await states(machines, ref) != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def forwarded(world: World, name: str = "dev") -> set[tuple[int, int]]:
    """Give what the process of a machine forwards, besides SSH: host's port, guest's port."""
    return {(f.host_port, f.guest_port) for f in world.forwards.get(name, ()) if f.guest_port != 22}


def of_port(ports: Sequence[Port], host_port: int) -> Port:
    (port,) = (port for port in ports if port.host_port == host_port)
    return port


@pytest.fixture
async def made(machines: Machines) -> Machines:
    await machines.create(NewMachine("dev"))
    return machines


@pytest.fixture
async def running(made: Machines) -> Machines:
    await made.start("dev")
    return made


async def test_the_users_own_survive_everything(made: Machines, world: World, paths: Paths) -> None:
    port, other = free_port(), free_port()
    added = await made.add_port("dev", own(port))
    assert (added.state, added.detail) == (WAITING, "the machine is stopped")
    assert (added.host_address, added.guest_address, added.source) == ("127.0.0.1", "", "user")
    await made.start("dev")
    await until_ports(made, {port: OPEN})
    await until(lambda: forwarded(world) == {(port, 80)})
    assert (await made.add_port("dev", own(other, 81))).state is OPEN
    assert await made.add_port("dev", own(other, 81)) == of_port(await made.ports("dev"), other)
    await made.suspend("dev")
    assert await states(made) == {port: WAITING, other: WAITING}
    await made.resume("dev")
    # Another process, which knows of no forward but SSH's.
    await until_ports(made, {port: OPEN, other: OPEN})
    await until(lambda: forwarded(world) == {(port, 80), (other, 81)})
    await made.stop("dev")
    assert await states(made) == {port: WAITING, other: WAITING}
    await made.close()
    async with AsyncExitStack() as stack:
        again = await _reopen(paths, world, stack)
        await again.start("dev")
        await until_ports(again, {port: OPEN, other: OPEN})
        await again.remove_port("dev", protocol="tcp", host_address="", host_port=port)
        await until(lambda: forwarded(world) == {(other, 81)})
        with pytest.raises(errors.PortNotFoundError, match=f"port {port}/tcp"):
            await again.remove_port("dev", protocol="", host_address="", host_port=port)
        await again.remove("dev", force=True)
        assert await again.ports("") == []


async def test_any_free_port_stays_the_machines(running: Machines, world: World) -> None:
    port = (await running.add_port("dev", own(0))).host_port
    assert port > 0
    await until(lambda: forwarded(world) == {(port, 80)})
    second = (await running.add_port("dev", own(0))).host_port
    assert second not in {0, port}
    await running.stop("dev")
    await running.start("dev")
    await until_ports(running, {port: OPEN, second: OPEN})


async def test_what_the_machine_has_already_or_makes_no_sense_is_refused(
    running: Machines, world: World
) -> None:
    port = free_port()
    await running.add_port("dev", own(port))
    for wanted in (own(port, 81), own(port, host_address="0.0.0.0")):
        with pytest.raises(errors.PortExistsError, match="of machine 'dev' already"):
            await running.add_port("dev", wanted)
    for wanted in (
        own(port, 0),
        own(70_000),
        own(port, 70_000),
        own(port, protocol="sctp"),
        own(port, host_address="web"),
        own(port, guest_address="0.0.0.0"),
    ):
        with pytest.raises(errors.InvalidArgumentError):
            await running.add_port("dev", wanted)
    with pytest.raises(errors.MachineNotFoundError):
        await running.add_port("none", own(port))
    await until(lambda: forwarded(world) == {(port, 80)})
    # The same port of the other protocol is another port.
    assert (await running.add_port("dev", own(port, protocol="udp"))).state is OPEN


async def test_published_ports_come_and_go(running: Machines, world: World) -> None:
    guest = world.guests["dev"]
    await until(lambda: guest.watched == 1)
    a, b, c = free_port(), free_port(), free_port()
    guest.run("web", container(a), container(b))
    await until_ports(running, {a: OPEN, b: OPEN})
    # The guest's port is the one it publishes.
    await until(lambda: forwarded(world) == {(a, a), (b, b)})
    shown = of_port(await running.ports("dev"), a)
    assert (shown.machine, shown.source, shown.guest_port) == ("dev", "container:web", a)
    guest.run("web", container(b), container(c))
    await until_ports(running, {b: OPEN, c: OPEN})
    await until(lambda: forwarded(world) == {(b, b), (c, c)})
    guest.end("web")
    await until_ports(running, {})
    await until(lambda: forwarded(world) == set())


async def test_bytes_reach_what_the_hypervisor_does_not(running: Machines, world: World) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello " + await reader.read())
        await writer.drain()
        writer.close()

    async def greeting(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"you")
        writer.write_eof()
        try:
            return await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    inner = server.sockets[0].getsockname()[1]
    published, mine = free_port(), free_port()
    await until(lambda: world.guests["dev"].watched == 1)
    world.guests["dev"].run("web", container(published, "127.0.0.1", inner))
    await running.add_port("dev", own(mine, inner, guest_address="localhost"))
    await until_ports(running, {published: OPEN, mine: OPEN})
    await until(lambda: forwarded(world) == set())
    assert await greeting(published) == await greeting(mine) == b"hello you"
    # A suspend that fails makes another link to the agent.
    world.saves_fail = errors.NoRoomError("the disk is full")
    with pytest.raises(errors.NoRoomError):
        await running.suspend("dev")
    await until(lambda: world.guests["dev"].watched == 2)
    assert await greeting(published) == await greeting(mine) == b"hello you"
    world.guests["dev"].end("web")
    await until_ports(running, {mine: OPEN})
    with pytest.raises(ConnectionRefusedError):
        await greeting(published)
    await running.stop("dev")
    with pytest.raises(ConnectionRefusedError):
        await greeting(mine)
    server.close()


async def test_a_guest_that_reboots_keeps_its_forwards_until_it_says_otherwise(
    running: Machines, world: World
) -> None:
    guest = world.guests["dev"]
    await until(lambda: guest.watched == 1)
    stays, goes, mine = free_port(), free_port(), free_port()
    guest.run("stays", container(stays))
    guest.run("goes", container(goes))
    await running.add_port("dev", own(mine))
    await until_ports(running, {stays: OPEN, goes: OPEN, mine: OPEN})
    guest.silent = True
    guest.lose()
    await until(lambda: guest.watched == 2)
    del guest.containers["goes"]
    assert set(await states(running)) == {stays, goes, mine}
    guest.silent = False
    guest.lose()
    await until_ports(running, {stays: OPEN, mine: OPEN})
    await until(lambda: forwarded(world) == {(stays, stays), (mine, 80)})


async def test_a_new_daemon_keeps_what_is_right_and_closes_the_rest(
    running: Machines, world: World, paths: Paths
) -> None:
    guest = world.guests["dev"]
    await until(lambda: guest.watched == 1)
    stays, goes, mine, moved = (free_port() for _ in range(4))
    await running.add_port("dev", own(mine))
    guest.run("stays", container(stays))
    guest.run("goes", container(goes))
    guest.run("moves", container(moved))
    await until_ports(running, {mine: OPEN, stays: OPEN, goes: OPEN, moved: OPEN})
    await running.close()
    # While no daemon runs they are open, and what happens in the guest is not seen.
    await until(
        lambda: forwarded(world) == {(mine, 80), (stays, stays), (goes, goes), (moved, moved)}
    )
    before = [f for f in world.forwards["dev"] if f.host_port in {mine, stays}]
    del guest.containers["goes"], guest.containers["moves"]
    world.forwards["dev"].append(Forward("udp", "127.0.0.1", moved, 1))
    async with AsyncExitStack() as stack:
        again = await _reopen(paths, world, stack)
        await again.add_port("dev", own(moved, 99))
        await until_ports(again, {mine: OPEN, stays: OPEN, moved: OPEN})
        await until(lambda: forwarded(world) == {(mine, 80), (stays, stays), (moved, 99)})
        # Not closed and opened again, and SSH's never touched.
        assert [f for f in world.forwards["dev"] if f.host_port in {mine, stays}] == before
        ssh_port = again.inspect("dev").ssh_port
        assert Forward("tcp", "127.0.0.1", ssh_port, 22) in world.forwards["dev"]
        assert of_port(await again.ports("dev"), ssh_port).source == "ssh"


async def test_a_port_of_another_program_is_retried_and_breaks_nothing(
    running: Machines, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_RETRY_S", 0.05)
    guest = world.guests["dev"]
    await until(lambda: guest.watched == 1)
    free = free_port()
    with running.context.events.subscribe("dev") as events:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            guest.run("web", container(port), container(free))
            await until_ports(running, {port: TAKEN, free: OPEN})
            detail = of_port(await running.ports("dev"), port).detail
            assert f"127.0.0.1:{port}/tcp is taken by another program" in detail
            assert f"sport = :{port}" in detail
            await asyncio.sleep(0.2)
        await until_ports(running, {port: OPEN, free: OPEN})
        told: list[tuple[int, PortState]] = []
        async with asyncio.timeout(5):
            while len(told) < 3:
                what = (await anext(events)).what
                assert isinstance(what, PortChanged)
                told.append((what.port.host_port, what.port.state))
    # Tried many times in between, and told once.
    assert told == [(port, TAKEN), (free, OPEN), (port, OPEN)]


async def test_a_port_of_another_machine_is_named_and_free_at_once(
    running: Machines, world: World
) -> None:
    await running.create(NewMachine("two"))
    await running.start("two")
    port = free_port()
    await running.add_port("dev", own(port))
    taken = await running.add_port("two", own(port))
    assert taken.state is TAKEN
    assert taken.detail == f"127.0.0.1:{port}/tcp is taken by machine 'dev' (user)"
    # Longer than the test may take: only by being told.
    await running.stop("dev", force=True)
    await until_ports(running, {port: OPEN}, "two")
    await until(lambda: forwarded(world, "two") == {(port, 80)})
    ssh_port = running.inspect("two").ssh_port
    with socket.socket() as other:  # as QEMU would
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", ssh_port))
        other.listen()
        await running.start("dev")
        taken = await running.add_port("dev", own(ssh_port))
    assert "is taken by machine 'two' (ssh)" in taken.detail


async def test_one_container_cannot_have_what_the_user_has(running: Machines, world: World) -> None:
    guest = world.guests["dev"]
    await until(lambda: guest.watched == 1)
    port = free_port()
    await running.add_port("dev", own(port, 9))
    guest.run("web", container(port))
    await until(lambda: running.context.ports.of(running.inspect("dev").id, "dev").count == 2)
    await running.context.ports.of(running.inspect("dev").id, "dev").settled(5)
    await until(lambda: forwarded(world) == {(port, 9)})
    await running.remove_port("dev", protocol="tcp", host_address="127.0.0.1", host_port=port)
    await until_ports(running, {port: OPEN})
    await until(lambda: forwarded(world) == {(port, port)})


async def test_a_hostile_guest_is_bounded(running: Machines, world: World) -> None:
    guest = world.guests["dev"]
    await until(lambda: guest.watched == 1)
    many = tuple(PortBinding("tcp", "127.0.0.77", 2000 + i, "", 80) for i in range(3000))
    guest.tell(PortsPublished("a" * 64, "container:evil", many[:2000]))
    guest.tell(PortsPublished("b" * 64, "container:evil2", many[2000:]))
    port = free_port()
    guest.tell(PortsPublished("", "container:user", (container(port),)))
    forwards = running.context.ports.of(running.inspect("dev").id, "dev")
    await until(lambda: forwards.count == engine.MAX_FORWARDS)
    with pytest.raises(errors.NoRoomError, match="1000 forwards"):
        await running.add_port("dev", own(port))
    guest.lose()  # the next session says that there is nothing
    await until_ports(running, {})


async def test_a_monitor_that_does_not_answer_is_told_and_tried_again(
    running: Machines, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_RETRY_S", 0.02)
    monkeypatch.setattr(engine, "_RETRY_MOST_S", 0.02)
    port = free_port()
    world.monitor_answers = False
    failed = await running.add_port("dev", own(port))
    assert (failed.state, failed.detail) == (PortState.FAILED, "the monitor does not answer")
    world.monitor_answers = True
    await until_ports(running, {port: OPEN})
    world.monitor_answers = False
    await running.remove_port("dev", protocol="tcp", host_address="", host_port=port)
    assert await states(running) == {}
    world.monitor_answers = True
    await until(lambda: forwarded(world) == set())


async def test_a_file_of_forwards_that_cannot_be_read_hurts_only_itself(
    made: Machines, world: World
) -> None:
    path = made.context.paths.machine(made.inspect("dev").id).ports
    path.write_text("{}")
    await made.start("dev")
    port = free_port()
    await until(lambda: world.guests["dev"].watched == 1)
    world.guests["dev"].run("web", container(port))
    await until_ports(made, {port: OPEN})
    with pytest.raises(errors.StoreError, match=r"ports\.json"):
        await made.add_port("dev", own(free_port()))
    assert path.read_text() == "{}"


async def test_the_guest_asks_for_the_runtimes_disk(running: Machines, world: World) -> None:
    guest = world.guests["dev"]
    await until(lambda: guest.watched == 1)
    guest.tell(RuntimeWanted())
    guest.tell(RuntimeWanted())
    await until(lambda: world.launched["dev"].runtime_disk is not None)


async def test_by_grpc(daemon: Daemon, world: World) -> None:
    await daemon.create()
    port = free_port()
    asked = host_pb2.AddPortRequest(id="dev", host_port=port, guest_port=80, protocol="udp")
    added = await daemon.host.AddPort(asked)
    assert (added.machine, added.protocol, added.state) == ("dev", "udp", "waiting")
    events = daemon.host.Watch(host_pb2.WatchRequest(subject="dev"))
    await events.initial_metadata()
    await daemon.machine.Start(machine_pb2.StartMachineRequest(id="dev"))
    async with asyncio.timeout(5):
        async for event in events:
            if event.WhichOneof("what") == "port":
                break
    assert (event.port.port.host_port, event.port.port.state) == (port, "open")
    events.cancel()
    listed = await daemon.host.ListPorts(host_pb2.ListPortsRequest())
    assert [(p.source, p.state) for p in listed.ports] == [("ssh", "open"), ("user", "open")]
    gone = host_pb2.RemovePortRequest(id="dev", host_port=port)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await daemon.host.RemovePort(gone)  # of tcp there is none
    assert isinstance(from_rpc_error(caught.value), errors.PortNotFoundError)
    gone.protocol = "udp"
    await daemon.host.RemovePort(gone)
    await until(lambda: forwarded(world) == set())


async def test_a_stopped_machine_has_nothing_open(running: Machines, world: World) -> None:
    guest = world.guests["dev"]
    await until(lambda: guest.watched == 1)
    port = free_port()
    guest.run("web", container(port))
    await until_ports(running, {port: OPEN})
    world.vms["dev"].die()
    await until(lambda: running.inspect("dev").state is MachineState.STOPPED)
    await until_ports(running, {})
