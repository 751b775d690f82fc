"""Base images: listed with what rests on them, and never taken from under it."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from arcboxd.domain.image import NewImage
from arcboxd.domain.machine import NewMachine
from arcboxd.errors import ImageNotFoundError, InvalidArgumentError, PreconditionError
from arcboxd.machines.events import Progress
from arcboxd.machines.service import Machines
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from tests.fakes import World
from tests.integration.daemon.conftest import Daemon

KEY = "image-1"


async def test_what_rests_on_an_image_is_told(daemon: Daemon) -> None:
    assert not (await daemon.host.ListImages(host_pb2.ListImagesRequest())).images
    pulled = await daemon.host.PullImage(host_pb2.PullImageRequest(distro="debian"))
    assert (pulled.key, pulled.distro, list(pulled.machines)) == (KEY, "debian", [])
    await daemon.create("web")
    await daemon.create("db")
    (found,) = (await daemon.host.ListImages(host_pb2.ListImagesRequest())).images
    assert (list(found.machines), found.templates) == (["db", "web"], 0)
    assert (found.apparent_bytes, found.source, found.init) == (4 << 30, "debian", "systemd")
    assert found.allocated_bytes < found.apparent_bytes


async def test_one_in_use_is_not_removed(daemon: Daemon) -> None:
    await daemon.create("web")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await daemon.host.RemoveImage(host_pb2.RemoveImageRequest(key=KEY))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "web" in (refused.value.details() or "")
    assert len((await daemon.host.ListImages(host_pb2.ListImagesRequest())).images) == 1


async def test_one_that_a_template_rests_on_is_not_removed(machines: Machines) -> None:
    await machines.prepare_template(NewMachine("dev"))
    with pytest.raises(PreconditionError, match="1 templates"):
        await machines.remove_image(KEY)


async def test_one_that_a_machine_is_made_of_right_now_is_not_removed(
    machines: Machines, world: World
) -> None:
    await machines.pull_image("debian", "", "")
    world.image_gate = asyncio.Event()
    creating = asyncio.ensure_future(machines.create(NewMachine("dev")))
    await world.image_wanted.wait()
    with pytest.raises(PreconditionError, match="being created"):
        await machines.remove_image(KEY)
    world.image_gate.set()
    await creating


async def test_one_that_nothing_rests_on_goes(machines: Machines) -> None:
    await machines.pull_image("debian", "", "")
    assert await machines.remove_image("debian:12") > 0
    assert await machines.list_images() == []
    with pytest.raises(ImageNotFoundError):
        await machines.remove_image("debian:12")


async def test_prune_keeps_what_new_machines_would_get(machines: Machines) -> None:
    await machines.pull_image("debian", "", "")
    pruned = await machines.prune_images()
    # Boot files go by rules of their own: here, one did.
    assert (pruned.keys, pruned.boot_files, pruned.freed_bytes) == ([], ["agent-0"], 1 << 20)
    assert len(await machines.list_images()) == 1


async def test_boot_files_are_made_of_newer_packages(machines: Machines) -> None:
    assert await machines.update_boot_files("") == ("6.1.0-fake", True)
    with pytest.raises(InvalidArgumentError, match="vax"):
        await machines.update_boot_files("vax")


async def test_verify_names_what_is_damaged(machines: Machines) -> None:
    use = await machines.pull_image("debian", "", "")
    assert await machines.verify_image(KEY) == []
    with use.image.path.open("r+b") as file:
        file.truncate(1)
    assert await machines.verify_image(KEY) == ["base.raw"]


async def test_progress_is_of_the_images(machines: Machines) -> None:
    with machines.context.events.subscribe("image") as events:
        await machines.pull_image("debian", "", "")
        event = await anext(aiter(events))
    assert isinstance(event.what, Progress)
    assert event.what.step == "building the Debian image"


async def test_errors_of_an_import_come_through(machines: Machines) -> None:
    with pytest.raises(InvalidArgumentError, match="no image"):
        await machines.import_image(NewImage("/tmp/x", "mine"))
