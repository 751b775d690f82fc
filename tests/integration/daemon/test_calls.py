"""The ten calls of the contract, and ours, as any gRPC client sees them."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import stat
import subprocess
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2, host_pb2
from arcboxd.wire.pb.arcbox.v1 import machine_pb2
from tests.fakes import World
from tests.integration.daemon.conftest import Daemon


def _start(ref: str = "dev") -> machine_pb2.StartMachineRequest:
    return machine_pb2.StartMachineRequest(id=ref)


def _agent(ref: str = "dev") -> machine_pb2.MachineAgentRequest:
    return machine_pb2.MachineAgentRequest(id=ref)


def _exec(*cmd: str) -> machine_pb2.MachineExecRequest:
    return machine_pb2.MachineExecRequest(id="dev", cmd=cmd, env={"A": "b"}, user="u")


@pytest.fixture
async def running(daemon: Daemon) -> Daemon:
    await daemon.create()
    await daemon.machine.Start(_start())
    return daemon


async def test_a_machine_lives_through_all_states(daemon: Daemon, world: World) -> None:
    machine_id = await daemon.create(cpus=2, memory=512 << 20, disk_size=8 << 30, cmdline="quiet")
    listed = await daemon.machine.List(machine_pb2.ListMachinesRequest())
    assert not listed.machines
    listed = await daemon.machine.List(machine_pb2.ListMachinesRequest(all=True))
    assert [(m.id, m.name, m.state) for m in listed.machines] == [(machine_id, "dev", "stopped")]

    await daemon.machine.Start(_start(machine_id[:4]))
    await daemon.machine.Start(_start("dev"))
    (listed_machine,) = (await daemon.machine.List(machine_pb2.ListMachinesRequest())).machines
    assert (listed_machine.state, listed_machine.ip_address) == ("running", "10.0.2.15")
    assert world.resets_allowed == 1
    (config,) = world.configs
    assert (config.cpus, config.memory_bytes, config.cmdline) == (2, 512 << 20, "quiet")
    assert (config.forwards[0].host_address, config.forwards[0].guest_port) == ("127.0.0.1", 22)

    await daemon.machine.Stop(machine_pb2.StopMachineRequest(id="dev"))
    await daemon.machine.Stop(machine_pb2.StopMachineRequest(id="dev"))
    assert await daemon.state() == "stopped"
    await daemon.machine.Remove(machine_pb2.RemoveMachineRequest(id="dev"))
    assert not list(daemon.paths.machines.iterdir())
    assert not (await daemon.machine.List(machine_pb2.ListMachinesRequest(all=True))).machines


async def test_inspect_tells_everything(running: Daemon) -> None:
    info = await running.machine.Inspect(machine_pb2.InspectMachineRequest(id="dev"))
    assert info.hardware.arch == os.uname().machine
    assert info.os.kernel == "6.1.0-fake"
    assert (info.os.distro, info.os.version) == ("debian", "12")
    assert info.network.gateway == "10.0.2.2"
    assert info.network.mac_address.startswith("52:54:00:")
    assert info.storage.disk_format == "qcow2"
    assert info.started_at.seconds >= info.created.seconds > 1_700_000_000
    extra = await running.host.InspectExtra(host_pb2.InspectExtraRequest(id=info.id))
    assert extra.pid
    assert extra.accelerator == "tcg"
    assert extra.ssh_port
    assert extra.disk_allocated_bytes > 0


async def test_the_disk_is_an_overlay_of_the_asked_size(daemon: Daemon) -> None:
    machine_id = await daemon.create(disk_size=5 << 30)
    paths = daemon.paths.machine(machine_id)
    disk = paths.disk
    info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", str(disk)]))
    assert info["virtual-size"] == 5 << 30
    assert info["full-backing-filename"] == str(paths.base_image)
    assert paths.base_image.samefile(daemon.paths.cache / "base.raw")


async def test_everything_is_private_to_the_user(daemon: Daemon) -> None:
    machine_id = await daemon.create()
    paths = daemon.paths.machine(machine_id)
    assert stat.S_IMODE(paths.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(paths.ssh_key.stat().st_mode) == 0o600
    assert stat.S_IMODE(daemon.paths.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(daemon.paths.run.stat().st_mode) == 0o700


async def test_ping_and_system_information(running: Daemon) -> None:
    pong = await running.machine.Ping(_agent())
    assert pong.version == "fake-1"
    info = await running.machine.GetSystemInfo(_agent())
    assert info.kernel_version == "6.1.0-fake"
    assert list(info.load_average) == [0.5, 0.25, 0.125]
    assert list(info.ip_addresses) == ["10.0.2.15"]


async def test_exec_streams_and_ends_with_the_exit_code(running: Daemon, world: World) -> None:
    outputs = [output async for output in running.machine.Exec(_exec("false"))]
    assert [(o.stream, o.data, o.done) for o in outputs[:-1]] == [("stderr", b"no\n", False)]
    assert outputs[-1].done
    assert outputs[-1].exit_code == 1
    assert world.specs[0].env == {"A": "b"}
    assert world.specs[0].user == "u"


async def test_exec_tells_why_a_program_did_not_run(running: Daemon) -> None:
    (output,) = [output async for output in running.machine.Exec(_exec("missing"))]
    assert (output.exit_code, output.done) == (127, True)
    assert b"not found" in output.data


async def test_a_cancelled_exec_is_closed(running: Daemon, world: World) -> None:
    call = running.machine.Exec(_exec("sleep"))
    first = await call.read()
    assert isinstance(first, machine_pb2.MachineExecOutput)
    assert first.data == b"begun"
    call.cancel()
    async with asyncio.timeout(5):
        while not world.exec_closed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_slow_reader_slows_the_process(running: Daemon, world: World) -> None:
    call = running.machine.Exec(_exec("flood"))
    first = await call.read()
    assert isinstance(first, machine_pb2.MachineExecOutput)
    assert len(first.data) <= 64 << 10
    seen = -1
    while seen != world.sent_bytes:  # until nothing more is taken from the process
        seen = world.sent_bytes
        await asyncio.sleep(0.2)
    assert seen < 32 << 20
    call.cancel()
    async with asyncio.timeout(5):
        while not world.exec_closed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_interactive_exec(running: Daemon) -> None:
    async def inputs() -> AsyncIterator[host_pb2.MachineExecInput]:
        start = guest_pb2.ExecStart(argv=["cat"], stdin=True)
        yield host_pb2.MachineExecInput(id="dev", input=guest_pb2.ExecInput(start=start))
        yield host_pb2.MachineExecInput(input=guest_pb2.ExecInput(stdin=b"hello"))
        end = guest_pb2.ExecInput(close_stdin=guest_pb2.CloseStdin())
        yield host_pb2.MachineExecInput(input=end)

    outputs = [output async for output in running.host.Exec(inputs())]
    assert outputs[0].stdout == b"hello"
    assert outputs[-1].exit.code == 0


async def test_ssh_info_can_be_pasted_and_used(running: Daemon) -> None:
    info = await running.machine.SSHInfo(machine_pb2.SSHInfoRequest(id="dev"))
    argv = shlex.split(info.command)
    assert argv[0] == "ssh"
    assert info.host == "127.0.0.1"
    # -G prints what ssh makes of it, and connects to nothing.
    told = subprocess.check_output([*argv[:1], "-G", *argv[1:]], text=True)
    settings = dict(line.split(" ", 1) for line in told.splitlines() if " " in line)
    assert settings["port"] == str(info.port)
    assert settings["user"] == info.user
    assert settings["identityfile"] == info.identity_file
    assert settings["stricthostkeychecking"] == "true"
    directory = os.path.dirname(info.identity_file)  # noqa: PTH120
    told = subprocess.check_output(
        ["ssh", "-G", "-F", f"{directory}/ssh_config", "arcbox-dev"], text=True
    )
    other = dict(line.split(" ", 1) for line in told.splitlines() if " " in line)
    for key in ("port", "user", "identityfile", "hostkeyalias", "userknownhostsfile"):
        assert other[key] == settings[key]
    listed = subprocess.check_output(
        ["ssh-keygen", "-F", settings["hostkeyalias"], "-f", settings["userknownhostsfile"]]
    )
    assert b"ssh-ed25519" in listed


async def test_watch_tells_states_and_progress(daemon: Daemon) -> None:
    call = daemon.host.Watch(host_pb2.WatchRequest(subject="dev"))
    await call.initial_metadata()
    await daemon.create("other")
    await daemon.create()
    events = []
    async for event in call:
        events.append(event)
        if event.state.state == "stopped":
            break
    assert {event.subject for event in events} == {"dev"}
    assert [e.state.state for e in events if e.HasField("state")] == ["creating", "stopped"]
    assert [e.progress.done for e in events if e.HasField("progress")] == [1, 2]
    sequences = [event.sequence for event in events]
    assert sequences == sorted(set(sequences))


async def test_daemon_info_health_and_stop(daemon: Daemon) -> None:
    await daemon.create()
    info = await daemon.host.GetDaemonInfo(host_pb2.DaemonInfoRequest())
    assert (info.pid, info.machines, info.running) == (os.getpid(), 1, 0)
    assert info.accelerator == "tcg"
    health = health_pb2_grpc.HealthStub(daemon.channel)
    for name in ("", "arcbox.v1.MachineService", "arcbox.ext.v1.HostService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await daemon.host.StopDaemon(host_pb2.StopDaemonRequest())
    await daemon.task
    assert not daemon.paths.socket.exists()


async def test_unexpected_errors_say_little_and_are_logged(
    running: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in running.machine.Exec(_exec("broken")):
            pass
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "a bug" not in (caught.value.details() or "")
    assert "a bug" in caplog.text
