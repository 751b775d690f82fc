"""A daemon in this process: real gRPC, SQLite, qemu-img and processes; only QEMU is a `sleep`."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import grpc.aio
import pytest

from arcboxd import aio
from arcboxd.daemon.main import open_machines, serve
from arcboxd.machines.service import Machines
from arcboxd.paths import Paths
from arcboxd.settings import Settings
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2_grpc
from arcboxd.wire.pb.arcbox.v1 import machine_pb2, machine_pb2_grpc
from tests.fakes import World, parts

SETTINGS = replace(
    Settings.for_host(),
    default_memory_bytes=256 << 20,
    stop_grace_s=1.0,
    start_timeout_s=2.0,
    templates="manual",
)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: pytest's own are too long for unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="abx", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def paths(directory: Path) -> Paths:
    return Paths(directory / "home", directory / "cache")


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for pid in world.pids:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@dataclass
class Daemon:
    """A daemon and a connection to it."""

    paths: Paths
    channel: grpc.aio.Channel
    machine: machine_pb2_grpc.MachineServiceAsyncStub
    host: host_pb2_grpc.HostServiceAsyncStub
    stop: asyncio.Event
    task: asyncio.Task[None]

    async def create(self, name: str = "dev", **fields: object) -> str:
        request = machine_pb2.CreateMachineRequest(name=name, **fields)  # type: ignore[arg-type]
        return (await self.machine.Create(request)).id

    async def state(self, ref: str = "dev") -> str:
        request = machine_pb2.InspectMachineRequest(id=ref)
        return (await self.machine.Inspect(request)).state

    async def until(self, state: str, ref: str = "dev") -> None:
        async with asyncio.timeout(5):
            while await self.state(ref) != state:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def start_daemon(paths: Paths, world: World, stack: AsyncExitStack) -> Daemon:
    """Start a daemon, stopped at the end of the stack unless it was before."""
    stop, ready = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        await serve(
            SETTINGS,
            paths,
            parts=lambda _, p: parts(world, p.cache),
            stop=stop,
            ready=ready.set,
        )

    task = aio.spawn(run(), name="daemon")
    waiter = asyncio.ensure_future(ready.wait())
    await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    if task.done():
        task.result()
    channel = grpc.aio.insecure_channel(
        f"unix:{paths.socket}", options=[("grpc.use_local_subchannel_pool", 1)]
    )
    daemon = Daemon(
        paths,
        channel,
        machine_pb2_grpc.MachineServiceStub(channel),
        host_pb2_grpc.HostServiceStub(channel),
        stop,
        task,
    )

    async def end() -> None:
        stop.set()
        await channel.close()
        await task

    stack.push_async_callback(end)
    return daemon


@pytest.fixture
async def daemon(paths: Paths, world: World) -> AsyncIterator[Daemon]:
    async with AsyncExitStack() as stack:
        yield await start_daemon(paths, world, stack)


@pytest.fixture
async def machines(paths: Paths, world: World) -> AsyncIterator[Machines]:
    """The use cases without gRPC."""
    async with AsyncExitStack() as stack:
        yield await open_machines(SETTINGS, paths, parts(world, paths.cache), stack)
