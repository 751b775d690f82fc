"""Clones that wait: few, given up when they should be, and no machine's until one takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from arcboxd.domain.machine import Boot, MachineState, NewMachine
from arcboxd.errors import HypervisorError
from arcboxd.machines import staging
from arcboxd.machines.service import Machines
from tests.fakes import FakeVm, World
from tests.integration.daemon.test_recovery import reopened

NEW = NewMachine("dev")


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def _start(machines: Machines, name: str) -> str:
    await machines.create(replace(NEW, name=name))
    await machines.start(name)
    assert machines.inspect(name).boot is Boot.TEMPLATE
    return machines.inspect(name).boot_reason


@pytest.fixture
async def pooled(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> Machines:
    """A daemon with a template, and with one clone of it that waits."""
    monkeypatch.setattr(staging, "_WATCH_S", 0.02)
    context = machines.context
    context.settings = replace(context.settings, staged_clones=1)
    await machines.prepare_template(NEW)
    assert "staged" not in await _start(machines, "first")
    await _until(lambda: len(context.staged.ready) == 1)
    return machines


async def test_a_start_takes_a_clone_that_waits(pooled: Machines, world: World) -> None:
    (staged,) = pooled.context.staged.ready
    launched = len(world.configs)
    assert (await _start(pooled, "dev")).endswith(", staged")
    paths = pooled.context.paths.machine(pooled.inspect("dev").id)
    assert pooled.context.running[pooled.inspect("dev").id].vm is staged.vm
    assert pooled.inspect("dev").process == staged.vm.process
    assert paths.disk.exists()
    assert paths.template_disk.samefile(staged.template.paths.disk)
    assert not staged.paths.directory.exists()
    # Identity is given to it as to any other machine.
    assert world.identities[-1].hostname == "dev"
    # The next one waits soon, and nothing but it was launched.
    await _until(lambda: len(pooled.context.staged.ready) == 1)
    assert len(world.configs) == launched + 1
    (use,) = await pooled.templates()
    assert (use.machines, use.staged) == (2, 1)
    await pooled.remove("dev", force=True)
    assert not paths.directory.exists()


async def test_a_larger_disk_grows(pooled: Machines, world: World) -> None:
    await pooled.create(replace(NEW, disk_bytes=70 << 30))
    await pooled.start("dev")
    assert pooled.inspect("dev").boot_reason.endswith(", staged")
    assert 70 << 30 in world.resized.values()


async def test_short_memory_ends_them(pooled: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    (staged,) = pooled.context.staged.ready
    monkeypatch.setattr(staging, "available_bytes", lambda: 1 << 20)
    await _until(lambda: not pooled.context.staged.ready)
    await staged.vm.wait_exit()
    assert "staged" not in await _start(pooled, "dev")
    monkeypatch.undo()
    await _until(lambda: len(pooled.context.staged.ready) == 1)


async def test_removing_the_template_ends_them(pooled: Machines) -> None:
    (staged,) = pooled.context.staged.ready
    await pooled.remove("first", force=True)
    await pooled.remove_template(staged.template.key)
    await staged.vm.wait_exit()
    assert not list(pooled.context.paths.work.glob("*"))
    await asyncio.sleep(0.1)
    assert not pooled.context.staged.ready


async def test_a_clone_that_died_waiting_is_passed_over(pooled: Machines, world: World) -> None:
    (staged,) = pooled.context.staged.ready
    assert isinstance(staged.vm, FakeVm)
    staged.vm.die()
    await staged.vm.wait_exit()
    await pooled.create(NEW)
    await pooled.start("dev")
    machine = pooled.inspect("dev")
    assert (machine.state, machine.boot) == (MachineState.RUNNING, Boot.TEMPLATE)
    assert "staged" not in machine.boot_reason
    assert not staged.paths.directory.exists()


async def test_a_clone_that_cannot_be_staged(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_vm: FakeVm) -> None:
        raise HypervisorError("refused")

    context = machines.context
    context.settings = replace(context.settings, staged_clones=1)
    await machines.prepare_template(NEW)
    monkeypatch.setattr(FakeVm, "pause", refuse)
    await _start(machines, "first")
    await _until(lambda: context.staged.wanted is None)
    assert not list(context.paths.work.glob("*"))
    assert not context.staged.ready


async def test_a_daemon_ends_what_an_earlier_one_staged(
    pooled: Machines, world: World, directory: Path
) -> None:
    async with reopened(pooled.context.paths, world, directory / "after") as after:
        assert not list(after.context.paths.work.glob("*"))


async def test_a_daemon_that_ends_leaves_none(pooled: Machines) -> None:
    (staged,) = pooled.context.staged.ready
    await pooled.close()
    await staged.vm.wait_exit()
    assert not list(pooled.context.paths.work.glob("*"))
