"""SetMachine, WaitBooted, kernels of one's own, and MmapReadFile through a daemon."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import grpc
import pytest

from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2, machine_pb2
from tests.fakes import World
from tests.integration.daemon.conftest import Daemon

GIB = 1 << 30


async def inspect(daemon: Daemon, name: str) -> machine_pb2.MachineInfo:
    return await daemon.machine.Inspect(machine_pb2.InspectMachineRequest(id=name))


async def test_a_stopped_machine_is_changed(daemon: Daemon, world: World) -> None:
    await daemon.create(name="dev", cpus=1, memory=GIB, disk_size=8 * GIB)
    request = host_pb2.SetMachineRequest(id="dev", cpus=2, memory=GIB // 2, disk_size=9 * GIB)
    for _ in range(2):
        await daemon.host.SetMachine(request)
    info = await inspect(daemon, "dev")
    assert (info.hardware.cpus, info.hardware.memory) == (2, GIB // 2)
    assert info.storage.disk_size == 9 * GIB
    disk = info.storage.disk_path
    found = subprocess.check_output(["qemu-img", "info", "--output=json", disk])
    assert json.loads(found)["virtual-size"] == 9 * GIB
    await daemon.machine.Start(machine_pb2.StartMachineRequest(id="dev"))
    assert (world.configs[-1].cpus, world.configs[-1].memory_bytes) == (2, GIB // 2)


async def test_a_running_machine_is_waited_for(daemon: Daemon) -> None:
    await daemon.create(name="dev")
    request = host_pb2.MachineWaitBootedRequest(id="dev")
    with pytest.raises(grpc.aio.AioRpcError, match="it is stopped") as caught:
        await daemon.host.WaitBooted(request)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await daemon.machine.Start(machine_pb2.StartMachineRequest(id="dev"))
    assert list((await daemon.host.WaitBooted(request)).failed) == ["cups.service"]


async def test_what_is_not_given_stays(daemon: Daemon) -> None:
    await daemon.create(name="dev", cpus=1, memory=GIB, disk_size=8 * GIB)
    await daemon.host.SetMachine(host_pb2.SetMachineRequest(id="dev", cpus=2))
    info = await inspect(daemon, "dev")
    assert (info.hardware.cpus, info.hardware.memory) == (2, GIB)
    assert info.storage.disk_size == 8 * GIB


@pytest.mark.parametrize(
    "change", [{"disk_size": 4 * GIB}, {"cpus": 256}, {"memory": 1}, {"disk_size": 1 << 62}]
)
async def test_what_cannot_be_is_refused(daemon: Daemon, change: dict[str, int]) -> None:
    await daemon.create(name="dev", cpus=1, memory=GIB, disk_size=8 * GIB)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await daemon.host.SetMachine(host_pb2.SetMachineRequest(id="dev", **change))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    info = await inspect(daemon, "dev")
    assert (info.hardware.cpus, info.storage.disk_size) == (1, 8 * GIB)


async def test_a_running_machine_is_not_changed(daemon: Daemon) -> None:
    await daemon.create(name="dev", cpus=1)
    await daemon.machine.Start(machine_pb2.StartMachineRequest(id="dev"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await daemon.host.SetMachine(host_pb2.SetMachineRequest(id="dev", cpus=2))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_kernel_of_ones_own_is_booted(
    daemon: Daemon, world: World, directory: Path
) -> None:
    kernel = directory / "my kernel, mine"
    kernel.write_bytes(bytes(0x202) + b"HdrS" + bytes(100))
    await daemon.create(name="dev", kernel=str(kernel))
    await daemon.machine.Start(machine_pb2.StartMachineRequest(id="dev"))
    assert world.configs[-1].assets.kernel == kernel
    extra = await daemon.host.InspectExtra(host_pb2.InspectExtraRequest(id="dev"))
    assert (extra.boot, extra.boot_reason) == ("cold", "it has a kernel of its own")


async def test_a_guests_file_is_read_in_pieces(daemon: Daemon, world: World) -> None:
    await daemon.create(name="dev")
    await daemon.machine.Start(machine_pb2.StartMachineRequest(id="dev"))
    world.files["/f"] = content = bytes(range(256)) * 12000

    async def read(offset: int, length: int) -> bytes:
        file = agent_pb2.MmapReadFileRequest(path="/f", offset=offset, length=length)
        request = host_pb2.MachineMmapReadFileRequest(id="dev", file=file)
        pieces = [piece async for piece in daemon.host.MmapReadFile(request)]
        assert all(piece.bytes_read == len(piece.data) for piece in pieces)
        return b"".join(piece.data for piece in pieces)

    assert await read(0, len(content)) == content
    assert await read(5, 3 << 20) == content[5:]
    assert await read(len(content) + 1, 10) == b""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read(0, (64 << 20) + 1)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
