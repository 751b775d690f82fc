"""Templates: made whole or not at all, used only where they fit; else machines boot cold."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from arcboxd.domain.image import BaseImage
from arcboxd.domain.machine import Boot, MachineState, NewMachine
from arcboxd.errors import (
    HypervisorError,
    InvalidArgumentError,
    PreconditionError,
    StoreError,
    TemplateNotFoundError,
    TooLateError,
    UnsupportedError,
)
from arcboxd.machines import disks, make_template, ssh
from arcboxd.machines.service import Machines
from arcboxd.machines.template_store import Template, TemplateStore
from tests.fakes import FakeAgent, FakeHypervisor, FakeImages, FakeVm, World
from tests.integration.daemon.test_recovery import Crash, reopened

NEW = NewMachine("dev")


async def _prepare(machines: Machines) -> Template:
    return (await machines.prepare_template(NEW)).template


async def _started(machines: Machines, new: NewMachine = NEW) -> tuple[Boot | None, str]:
    await machines.create(new)
    await machines.start(new.name)
    machine = machines.inspect(new.name)
    assert machine.state is MachineState.RUNNING
    return machine.boot, machine.boot_reason


def _backing(disk: Path) -> list[str]:
    out = subprocess.check_output(
        ["qemu-img", "info", "--output=json", "--backing-chain", "-U", str(disk)]
    )
    return [Path(each["filename"]).name for each in json.loads(out)]


def _work(machines: Machines) -> list[Path]:
    return list(machines.context.paths.work.glob("*"))


def _alive(world: World) -> int:
    return sum(1 for vm in world.vms.values() if vm._handle.alive)


@pytest.mark.parametrize("pages", [((4096, 8192),), ((0, 33 << 20),), ()])
async def test_pages_that_one_clone_wrote_are_copied_for_the_next(
    machines: Machines, world: World, pages: tuple[tuple[int, int], ...]
) -> None:
    made = await _prepare(machines)
    world.own_pages = pages
    await _started(machines, replace(NEW, name="first"))
    assert world.restored[-1].hot_pages == ()
    async with asyncio.timeout(5):
        while machines.context.works_on(f"hot pages of {made.key[:12]}"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await _started(machines, replace(NEW, name="second"))
    few = sum(length for _, length in pages) <= 32 << 20
    assert world.restored[-1].hot_pages == (pages if few else ())


async def test_a_new_machine_starts_from_a_template(machines: Machines, world: World) -> None:
    made = await _prepare(machines)
    assert await _started(machines) == (Boot.TEMPLATE, f"from template {made.key[:12]}")
    config, paths = world.configs[-1], machines.context.paths.machine(machines.inspect("dev").id)
    assert world.restored[-1].path == made.paths.state
    assert made.link_mark == world.frozen[-1] != 0
    assert config.memory_file is not None
    assert (config.memory_file.path, config.memory_file.shared) == (made.paths.memory, False)
    # Giving pages back would punch holes into the template's memory.
    assert not config.balloon
    assert config.machine_type == "fake-1"
    assert _backing(paths.disk) == ["root.qcow2", "template.qcow2", "base.img"]
    assert machines.context.templates.links(made) == 1


async def test_services_begin_when_no_machine_starts_any_more(
    machines: Machines, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcboxd.machines.context._FIRST_COMMAND_S", 0.2)
    await _prepare(machines)
    other = await machines.create(replace(NEW, name="other"))
    with machines.context.locks.hold(other, "start"):
        await _started(machines)
        await asyncio.sleep(0.25)
        assert not world.begun
    await asyncio.sleep(0.05)  # the other's first command
    with machines.context.locks.hold(other, "start"):
        await asyncio.sleep(0.25)
        assert not world.begun
    async with asyncio.timeout(5):
        while world.begun != ["dev"]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_the_second_start_is_cold(machines: Machines, world: World) -> None:
    await _prepare(machines)
    await _started(machines)
    disk = machines.context.paths.machine(machines.inspect("dev").id).disk
    before = disk.stat().st_ino
    await machines.stop("dev", force=True)
    await machines.start("dev")
    machine = machines.inspect("dev")
    assert (machine.boot, machine.boot_reason) == (
        Boot.COLD,
        "the machine has been started before",
    )
    assert disk.stat().st_ino == before
    assert world.configs[-1].balloon
    assert world.configs[-1].memory_file is None


async def test_one_template_a_shape(machines: Machines, world: World) -> None:
    made = await _prepare(machines)
    assert await _prepare(machines) == made
    both = await asyncio.gather(
        *(machines.prepare_template(replace(NEW, cpus=1)) for _ in range(2))
    )
    assert both[0].template == both[1].template != made
    assert len(list(machines.context.paths.templates.iterdir())) == 2
    assert not _alive(world)


@pytest.mark.parametrize(
    "change",
    [
        lambda new: replace(new, memory_bytes=512 << 20),
        lambda new: replace(new, cpus=1),
        lambda new: replace(new, disk_bytes=5 << 30),
    ],
)
async def test_another_shape_boots_cold(
    machines: Machines, change: Callable[[NewMachine], NewMachine]
) -> None:
    await _prepare(machines)
    assert await _started(machines, change(NEW)) == (Boot.COLD, "no template fits it")


async def test_a_larger_disk_grows(machines: Machines, world: World) -> None:
    await machines.prepare_template(replace(NEW, disk_bytes=5 << 30))
    largest = await machines.prepare_template(replace(NEW, disk_bytes=6 << 30))
    boot, reason = await _started(machines, replace(NEW, disk_bytes=7 << 30))
    assert boot is Boot.TEMPLATE
    assert largest.template.key[:12] in reason
    assert world.resized == {"dev": 7 << 30}


async def test_another_hypervisor_processor_or_agent_boots_cold(
    machines: Machines, world: World
) -> None:
    made = await _prepare(machines)
    assert (await machines.templates())[0].current
    world.board = "fake-2"
    assert await _started(machines) == (Boot.COLD, "no template fits it")
    assert not (await machines.templates())[0].current
    keys, freed = await machines.prune_templates()
    assert (list(keys), freed > 0) == ([made.key], True)
    assert not list(machines.context.paths.templates.iterdir())
    assert not _work(machines)


async def test_a_new_template_ends_those_of_no_more_use(machines: Machines, world: World) -> None:
    await _prepare(machines)
    kept = await machines.prepare_template(replace(NEW, cpus=1))
    await _started(machines, replace(NEW, name="one", cpus=1))
    world.board = "fake-2"
    made = await _prepare(machines)
    left = [each.template for each in await machines.templates()]
    # A machine's disk rests on one of the old ones.
    assert left == [kept.template, made]


async def test_data_disks_boot_cold(machines: Machines) -> None:
    await _prepare(machines)
    machine = await machines.create(NEW)
    volumes = machines.context.paths.volumes / machine.id
    volumes.mkdir(parents=True)
    (volumes / "data.qcow2").touch()
    await machines.start("dev")
    assert machines.inspect("dev").boot_reason == "it has data disks"


async def test_a_template_in_use_stays(machines: Machines, world: World) -> None:
    made = await _prepare(machines)
    await _started(machines)
    world.board = "fake-2"
    assert await machines.prune_templates() == ([], 0)
    with pytest.raises(PreconditionError, match="1 machines"):
        await machines.remove_template(made.key)
    await machines.remove("dev", force=True)
    await machines.remove_template(made.key[:8])
    with pytest.raises(TemplateNotFoundError):
        await machines.remove_template(made.key)


async def test_references_to_templates(machines: Machines) -> None:
    await _prepare(machines)
    for ref, error in (("", InvalidArgumentError), ("zzzz", TemplateNotFoundError)):
        with pytest.raises(error):
            await machines.remove_template(ref)


async def test_switched_off(machines: Machines) -> None:
    await _prepare(machines)
    context = machines.context
    context.settings = replace(context.settings, templates="off")
    assert await _started(machines) == (Boot.COLD, "templates are switched off")
    with pytest.raises(PreconditionError):
        await _prepare(machines)


async def test_a_cold_start_makes_a_template(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_template, "_AFTER_START_S", 0.0)
    context = machines.context
    context.settings = replace(context.settings, templates="auto")
    await _started(machines)
    async with asyncio.timeout(10):
        while not context.templates.all():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    boot, _ = await _started(machines, replace(NEW, name="two"))
    assert boot is Boot.TEMPLATE


async def test_an_image_that_cannot_settle_is_not_booted_for_a_template(
    machines: Machines, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure = FakeImages.ensure

    async def without_init(*args: object) -> BaseImage:
        return replace(await ensure(*args), init="none")  # type: ignore[arg-type]

    monkeypatch.setattr(FakeImages, "ensure", without_init)
    with pytest.raises(UnsupportedError, match="systemd or OpenRC"):
        await _prepare(machines)
    assert not world.vms


def _truncate(made: Template) -> None:
    os.truncate(made.paths.memory, 100)


def _touch(made: Template) -> None:
    os.utime(made.paths.state, ns=(1, 1))


def _lose(made: Template) -> None:
    made.paths.disk.unlink()


@pytest.mark.parametrize("harm", [_truncate, _touch, _lose])
@pytest.mark.parametrize("restart", [False, True])
async def test_a_changed_template_is_never_used(
    machines: Machines,
    world: World,
    directory: Path,
    harm: Callable[[Template], None],
    restart: bool,
) -> None:
    made = await _prepare(machines)
    harm(made)
    if restart:
        machines.context.templates = TemplateStore(machines.context.paths)
        machines.context.templates.load()
    boot, reason = await _started(machines)
    assert boot is Boot.COLD
    assert "file" in reason
    assert not world.restored


async def test_what_is_no_template_is_passed_over(machines: Machines) -> None:
    made = await _prepare(machines)
    made.paths.manifest.write_text("{")
    (machines.context.paths.templates / "junk").mkdir()
    (machines.context.paths.templates / "file").touch()
    store = TemplateStore(machines.context.paths)
    store.load()
    assert store.all() == ()


@pytest.mark.parametrize("how", ["launch", "agent", "dies", "resume", "resize"])
async def test_a_restore_that_fails_becomes_a_cold_start(
    machines: Machines, world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    made = await _prepare(machines)
    if how == "launch":
        made.paths.state.chmod(0o600)
        made.paths.state.write_bytes(b"rubbish")
        os.utime(made.paths.state, ns=(1, 1))
        manifest = json.loads(made.paths.manifest.read_text())
        manifest["files"]["state"] = [7, 1]
        made.paths.manifest.write_text(json.dumps(manifest))
    elif how == "agent":
        monkeypatch.setattr("arcboxd.machines.start._TEMPLATE_TIMEOUT_S", 0.2)
        late = [TooLateError("not ready")]

        async def wait_ready(self: FakeAgent, timeout_s: float) -> None:
            if late:
                raise late.pop()

        monkeypatch.setattr(FakeAgent, "wait_ready", wait_ready)
    elif how == "dies":
        world.dies_at_restore = True
    else:

        async def refuse(*_args: object) -> None:
            raise HypervisorError("refused")

        monkeypatch.setattr(FakeVm, "resume" if how == "resume" else "resize_disk", refuse)
    new = replace(NEW, disk_bytes=65 << 30)
    boot, reason = await _started(machines, new)
    assert boot is Boot.COLD
    assert "could not start from template" in reason
    # The disk is as new: nothing of the failed attempt is in it.
    disk = machines.context.paths.machine(machines.inspect("dev").id).disk
    assert _backing(disk) == ["root.qcow2", "base.img"]
    assert _alive(world) == 1
    assert machines.context.templates.links(made) == 0
    # One that failed is not tried again.
    world.restored.clear()
    assert (await _started(machines, replace(new, name="two")))[0] is Boot.COLD
    assert not world.restored
    assert not (await machines.templates())[0].current


async def test_a_stopped_start_leaves_the_machine_new(machines: Machines, world: World) -> None:
    await _prepare(machines)
    world.agent_ready = False
    await machines.create(NEW)
    start = asyncio.ensure_future(machines.start("dev"))
    async with asyncio.timeout(5):
        while not world.restored:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert machines.inspect("dev").state is MachineState.STOPPED
    assert not _alive(world)
    world.agent_ready = True
    await machines.start("dev")
    assert machines.inspect("dev").boot is Boot.TEMPLATE


@pytest.mark.parametrize("how", ["settle", "save", "publish", "dies"])
async def test_a_making_that_fails_leaves_nothing(
    machines: Machines, world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async def late(*_args: object) -> None:
        raise TooLateError("it did not come to rest")

    def full(*_args: object) -> None:
        raise StoreError("no space is left")

    if how == "settle":
        monkeypatch.setattr(FakeAgent, "settle", late)
    elif how == "save":
        world.saves_fail = HypervisorError("it cannot be saved")
    elif how == "publish":
        monkeypatch.setattr(machines.context.templates, "publish", full)
    else:
        world.dies_at_start = True
    with pytest.raises((TooLateError, HypervisorError, StoreError)):
        await _prepare(machines)
    assert not list(machines.context.paths.templates.iterdir())
    assert not _work(machines)
    assert not _alive(world)


MAKING = {
    "fingerprint": (FakeHypervisor, "fingerprint"),
    "disk": (disks, "on_image"),
    "launch": (FakeHypervisor, "launch"),
    "key": (ssh, "make_host_key"),
    "agent": (make_template, "first_answer"),
    "settle": (FakeAgent, "settle"),
    "pause": (FakeVm, "pause"),
    "save": (FakeVm, "save"),
    "kill": (FakeVm, "kill"),
    "publish": (asyncio, "to_thread"),
}


@pytest.mark.parametrize("point", MAKING)
async def test_a_daemon_killed_while_making_leaves_nothing(
    machines: Machines, world: World, directory: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    crash = Crash()
    target, name = MAKING[point]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, crash)
        task = asyncio.ensure_future(_prepare(machines))
        async with asyncio.timeout(5):
            await crash.reached.wait()
        patch.undo()
        async with reopened(machines.context.paths, world, directory / "after") as after:
            assert not after.context.templates.all()
            assert not _work(after)
            made = await _prepare(after)
            assert await _started(after) == (Boot.TEMPLATE, f"from template {made.key[:12]}")
        crash.released.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


USING = {
    "disk": (disks, "on_template"),
    "launch": (FakeHypervisor, "launch"),
    "resize": (FakeVm, "resize_disk"),
    "record": ("registry", "change"),
    "resume": (FakeVm, "resume"),
    "agent": (FakeAgent, "wait_ready"),
    "reset": (FakeVm, "allow_reset"),
    "running": ("registry", "move"),
}


@pytest.mark.parametrize("point", USING)
async def test_a_daemon_killed_while_restoring_loses_nothing(
    machines: Machines, world: World, directory: Path, point: str
) -> None:
    made = await machines.prepare_template(replace(NEW, disk_bytes=5 << 30))
    new = replace(NEW, disk_bytes=6 << 30)
    await machines.create(new)
    crash = Crash()
    target, name = USING[point]
    with pytest.MonkeyPatch.context() as patch:
        if target == "registry":
            # The first move is to `starting`, and is made; the next one blocks.
            real = getattr(machines.context.registry, name)
            first = [name == "move"]

            async def later(*args: object, **changes: object) -> object:
                if first.pop() if first else False:
                    return await real(*args, **changes)
                if "ssh_port" in changes:
                    return await real(*args, **changes)
                await crash(*args)
                return None

            patch.setattr(machines.context.registry, name, later)
        else:
            patch.setattr(target, name, crash)
        task = asyncio.ensure_future(machines.start("dev"))
        async with asyncio.timeout(5):
            await crash.reached.wait()
        patch.undo()
        async with reopened(machines.context.paths, world, directory / "after") as after:
            # Either the start was completed, or it is as if it had not begun.
            state = after.inspect("dev").state
            assert state in {MachineState.STOPPED, MachineState.RUNNING}
            await after.start("dev")
            machine = after.inspect("dev")
            assert machine.boot is Boot.TEMPLATE
            assert made.template.key[:12] in machine.boot_reason
        crash.released.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_removal_that_was_killed_is_completed(
    machines: Machines, world: World, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await _prepare(machines)
    monkeypatch.setattr("arcboxd.machines.template_store.shutil.rmtree", lambda _: None)
    await machines.remove_template(made.key)
    monkeypatch.undo()
    assert _work(machines)
    async with reopened(machines.context.paths, world, directory / "after") as after:
        assert not _work(after)
        assert not after.context.templates.all()


async def test_a_template_with_the_runtime_is_preferred_and_its_clones_keep_it(
    machines: Machines, world: World
) -> None:
    plain = await _prepare(machines)
    made = await machines.prepare_template(replace(NEW, name="x"), runtime=True)
    assert made.template.key != plain.key
    assert made.template.runtime_disk is not None
    machine = await machines.create(replace(NEW, name="one"))
    await machines.start("one")
    found = machines.inspect("one")
    assert (found.boot, found.boot_reason) == (
        Boot.TEMPLATE,
        f"from template {made.template.key[:12]}",
    )
    assert world.launched["one"].runtime_disk == made.template.runtime_disk
    assert machines.context.paths.machine(machine.id).runtime_marker.exists()
    await machines.remove_template(plain.key)
    await machines.stop("one")
    await machines.start("one")
    # Booted by itself, it has the runtime's disk all the same.
    assert world.launched["one"].runtime_disk == made.template.runtime_disk
