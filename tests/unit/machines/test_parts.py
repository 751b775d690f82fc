"""The small parts that the use cases are made of."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcboxd.aio import complete
from arcboxd.domain.machine import Machine, MachineState
from arcboxd.errors import (
    InvalidArgumentError,
    MachineBusyError,
    MachineExistsError,
    MachineNotFoundError,
    MachineStateError,
    StoreError,
)
from arcboxd.machines import console, ssh, validate
from arcboxd.machines.events import EventBus, Lost, StateChanged
from arcboxd.machines.locks import Locks
from arcboxd.machines.registry import DETAIL_LIMIT, Registry
from arcboxd.machines.undo import Undo, together
from arcboxd.paths import MachinePaths
from tests.unit.store.test_store import MACHINE


class MemoryStore:
    """Keeps records, and can fail or be slow."""

    def __init__(self, *machines: Machine) -> None:
        self.kept = {machine.id: machine for machine in machines}
        self.fails = False

    async def load(self) -> list[Machine]:
        return list(self.kept.values())

    async def put(self, machine: Machine) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise StoreError("the disk is full")
        self.kept[machine.id] = machine

    async def delete(self, machine_id: str) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise StoreError("the disk is full")
        self.kept.pop(machine_id, None)


def machine(machine_id: str, name: str) -> Machine:
    return replace(MACHINE, id=machine_id, spec=replace(MACHINE.spec, name=name))


async def registry(*machines: Machine) -> tuple[Registry, MemoryStore]:
    store = MemoryStore(*machines)
    made = Registry(store, EventBus())
    await made.load()
    return made, store


async def test_references() -> None:
    reg, _ = await registry(
        machine("aaaa11111111", "dev"), machine("aaaa22222222", "web"), machine("b" * 12, "aaaa1")
    )
    assert reg.find("aaaa11111111").spec.name == "dev"
    assert reg.find("web").id == "aaaa22222222"
    assert reg.find("aaaa1").id == "b" * 12, "a name comes before a prefix"
    assert reg.find("aaaa2").spec.name == "web"
    with pytest.raises(InvalidArgumentError, match="dev, web"):
        reg.find("aaaa")
    for ref in ("aaa", "bbb", "cccc", "DEV", "x" * 10_000):
        with pytest.raises(MachineNotFoundError):
            reg.find(ref)


async def test_what_the_store_refuses_did_not_happen() -> None:
    reg, store = await registry(MACHINE)
    store.fails = True
    with pytest.raises(StoreError):
        await reg.move(MACHINE.id, MachineState.STOPPING)
    with pytest.raises(StoreError):
        await reg.add(machine("c" * 12, "new"))
    with pytest.raises(StoreError):
        await reg.erase(MACHINE.id)
    assert reg.all() == (MACHINE,)
    reg.check_free("new")


async def test_a_cancelled_change_is_completed() -> None:
    reg, store = await registry(MACHINE)
    task = asyncio.ensure_future(reg.move(MACHINE.id, MachineState.STOPPING))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reg.get(MACHINE.id).state is MachineState.STOPPING
    assert store.kept[MACHINE.id].state is MachineState.STOPPING


async def test_names_are_taken_at_once_and_details_are_bounded() -> None:
    reg, _ = await registry()
    results = await asyncio.gather(
        reg.add(machine("c" * 12, "new")),
        reg.add(machine("d" * 12, "new")),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), MachineExistsError]
    changed = await reg.change("c" * 12, detail="x" * 100_000)
    assert len(changed.detail) == DETAIL_LIMIT


async def test_a_held_machine_is_busy() -> None:
    locks = Locks()
    with locks.hold(MACHINE, "start"):
        with pytest.raises(MachineBusyError, match="its start"), locks.hold(MACHINE, "stop"):
            pass
        waiter = asyncio.ensure_future(locks.free(MACHINE.id))
        await asyncio.sleep(0)
        assert not waiter.done()
    await waiter
    with locks.hold(MACHINE, "stop"):
        pass


async def test_an_abort_is_told_from_a_cancellation() -> None:
    locks = Locks()

    async def work() -> None:
        with locks.hold(MACHINE, "start") as operation:
            async with operation.abortable("dev"):
                await asyncio.sleep(3600)

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    operation = locks.current(MACHINE.id)
    assert operation is not None
    assert operation.abort("a forced stop")
    assert operation.abort("a forced stop")
    with pytest.raises(MachineStateError, match="forced stop during its start"):
        await task
    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_way_back_is_walked_to_its_end() -> None:
    steps = []

    async def step(name: str) -> None:
        await asyncio.sleep(0.01)
        steps.append(name)

    async def work() -> None:
        async with Undo() as undo:
            undo.push_async_callback(step, "first")
            undo.push_async_callback(step, "second")
            await asyncio.sleep(3600)

    task = asyncio.ensure_future(work())
    for _ in range(3):
        await asyncio.sleep(0.002)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["second", "first"]


async def test_complete_gives_results_and_errors() -> None:
    async def value() -> int:
        return 7

    assert await complete(value()) == 7

    async def fails() -> None:
        raise StoreError("no")

    with pytest.raises(StoreError):
        await complete(fails())
    with pytest.raises(StoreError):
        await together(asyncio.sleep(3600), fails())


async def test_a_slow_subscriber_loses_the_oldest_and_is_told() -> None:
    bus = EventBus(limit=3)
    with bus.subscribe("dev") as events:
        bus.state("other", "running", "")
        for number in range(5):
            bus.state("dev", str(number), "")
        lost = await anext(events)
        assert lost.what == Lost(2)
        rest = [await anext(events) for _ in range(3)]
        assert [event.what for event in rest] == [StateChanged(str(n), "") for n in (2, 3, 4)]
        assert [event.sequence for event in rest] == [4, 5, 6]
        assert lost.sequence < rest[0].sequence
    bus.state("dev", "later", "")


def test_the_consoles_last_words_are_safe(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    assert console.tail(log) == []
    lines = [f"\x1b[1;31mline {n}\x1b[0m\x00\x07\r" for n in range(5000)]
    log.write_bytes("\n".join([*lines, "\x9b31mx" * 500, "\x1b]0;title\x07end"]).encode() + b"\xff")
    tail = console.tail(log)
    assert len(tail) == 12
    assert tail[0] == "line 4990"
    assert tail[-1].startswith("end")
    assert all(line.isprintable() and len(line) <= 160 for line in tail)


@given(st.binary(max_size=9000))
def test_no_console_is_dangerous(data: bytes) -> None:
    path = Path("/dev/shm/arcbox-test-console")
    path.write_bytes(data)
    try:
        assert all(line.isprintable() for line in console.tail(path))
    finally:
        path.unlink()


@given(st.text(st.characters(exclude_characters='\0\n\r/"$'), min_size=1, max_size=30))
def test_any_directory_can_be_pasted(name: str) -> None:
    paths = MachinePaths(Path("/tmp") / name)
    argv = shlex.split(ssh.command(MACHINE, paths))
    assert str(paths.ssh_key) in " ".join(argv).replace("%%", "%")


def test_ssh_itself_understands_strange_directories(tmp_path: Path) -> None:
    paths = MachinePaths(tmp_path / "with space & 'quote' 100%h")
    paths.directory.mkdir()
    paths.ssh_key.touch()
    ssh.write_config(MACHINE, paths)
    argv = shlex.split(ssh.command(MACHINE, paths))
    for command in (["ssh", "-G", *argv[1:]], ["ssh", "-G", "-F", str(paths.ssh_config), "dev"]):
        told = subprocess.check_output(command, text=True).splitlines()
        settings = dict(line.split(" ", 1) for line in told if " " in line)
        assert settings["port"] == "2222"
        assert settings["hostkeyalias"] == f"arcbox-{MACHINE.id}"
        assert settings["identityfile"].replace("%%", "%").strip('"') == str(paths.ssh_key)


def test_a_port_is_kept_while_it_is_free() -> None:
    port = ssh.choose_port(0, frozenset())
    assert ssh.choose_port(port, frozenset()) == port
    assert ssh.choose_port(port, frozenset({port})) != port


def test_login_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        pw_name = ""

    def name(of: str) -> str:
        Entry.pw_name = of
        monkeypatch.setattr("pwd.getpwuid", lambda uid: Entry)
        return validate.login_name(1000)

    assert name("me") == "me"
    assert name("DOMAIN\\Me.Too") == "domain_me_too"
    assert name("1st") == "u1st"
    assert name("-x-") == "x"
    assert name("ü") == "_"
    assert name("") == "arcbox"
    assert len(name("x" * 99)) == 32
