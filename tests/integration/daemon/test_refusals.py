"""Requests that cannot be met: the right status, a sentence, and nothing left behind."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from arcboxd import errors
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2, host_pb2
from arcboxd.wire.pb.arcbox.v1 import machine_pb2
from arcboxd.wire.status import from_rpc_error
from tests.fakes import World
from tests.integration.daemon.conftest import Daemon

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNSUPPORTED = grpc.StatusCode.UNIMPLEMENTED
NOT_FOUND = grpc.StatusCode.NOT_FOUND
WRONG_STATE = grpc.StatusCode.FAILED_PRECONDITION


def key_blob(kind: str) -> str:
    raw = struct.pack(">I", len(kind)) + kind.encode() + struct.pack(">I", 32) + bytes(32)
    return base64.b64encode(raw).decode()


ED25519 = f"ssh-ed25519 {key_blob('ssh-ed25519')} me@here"

BAD_MACHINES: list[tuple[dict[str, Any], grpc.StatusCode, str]] = [
    ({"name": ""}, INVALID, "name"),
    ({"name": "Dev"}, INVALID, "name"),
    ({"name": "-dev"}, INVALID, "name"),
    ({"name": "a" * 64}, INVALID, "name"),
    ({"name": "../../etc"}, INVALID, "name"),
    ({"name": "dev\n"}, INVALID, "name"),
    ({"name": "dév"}, INVALID, "name"),
    ({"cpus": 256}, INVALID, "vCPUs"),
    ({"cpus": 2**32 - 1}, INVALID, "vCPUs"),
    ({"memory": 1}, INVALID, "memory"),
    ({"memory": 2**63}, INVALID, "memory"),
    ({"disk_size": 1 << 30}, INVALID, "disk"),
    ({"disk_size": 2**63}, INVALID, "disk"),
    ({"distro": "plan9"}, INVALID, "plan9"),
    ({"distro": "debian", "version": "0"}, INVALID, "debian"),
    ({"arch": "vax"}, INVALID, "vax"),
    (
        {"mounts": [machine_pb2.DirectoryMount(host_path="/nonexistent", guest_path="/x")]},
        INVALID,
        "/nonexistent",
    ),
    ({"kernel": "vmlinuz"}, INVALID, "kernel"),
    ({"kernel": "/nonexistent/vmlinuz"}, INVALID, "kernel"),
    ({"kernel": "/proc/self/status"}, INVALID, "kernel"),
    ({"kernel": "/proc"}, INVALID, "kernel"),
    ({"cmdline": "x" * 1025}, INVALID, "command line"),
    ({"cmdline": "a\nb"}, INVALID, "command line"),
    ({"cmdline": "a\0b"}, INVALID, "command line"),
    ({"ssh_public_key": "hello"}, INVALID, "SSH"),
    ({"ssh_public_key": f"{ED25519}\n{ED25519}"}, INVALID, "SSH"),
    ({"ssh_public_key": f'command="sh" {ED25519}'}, INVALID, "SSH"),
    ({"ssh_public_key": f"ssh-rsa {key_blob('ssh-ed25519')}"}, INVALID, "SSH"),
    ({"ssh_public_key": "ssh-ed25519 !!!!"}, INVALID, "SSH"),
    ({"ssh_public_key": f"ssh-dss {key_blob('ssh-dss')}"}, INVALID, "ssh-dss"),
    ({"ssh_public_key": "ssh-ed25519 AAAA"}, INVALID, "SSH"),
]


@pytest.mark.parametrize(("fields", "code", "word"), BAD_MACHINES)
async def test_a_bad_machine_is_refused(
    daemon: Daemon, fields: dict[str, Any], code: grpc.StatusCode, word: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await daemon.create(**{"name": "dev", **fields})
    assert caught.value.code() is code
    assert word in (caught.value.details() or "")
    listed = await daemon.machine.List(machine_pb2.ListMachinesRequest(all=True))
    assert not listed.machines
    assert not list(daemon.paths.machines.iterdir())


async def test_a_machine_that_nothing_here_could_run_is_not_made(
    daemon: Daemon, world: World
) -> None:
    world.missing = "qemu-system-other"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await daemon.create("dev")
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "qemu-system-other" in (caught.value.details() or "")
    assert not list(daemon.paths.machines.iterdir())


async def test_good_keys_are_accepted(daemon: Daemon, world: World) -> None:
    await daemon.create(ssh_public_key=ED25519)
    await daemon.machine.Start(machine_pb2.StartMachineRequest(id="dev"))
    own, given = world.identities[0].authorized_keys
    assert given == ED25519
    assert own.startswith("ssh-ed25519 ")
    assert own.endswith(" arcbox-dev")


Request = Callable[[Daemon], Any]
BY_REF: list[tuple[str, Request]] = [
    ("start", lambda d: d.machine.Start(machine_pb2.StartMachineRequest(id="nope"))),
    ("stop", lambda d: d.machine.Stop(machine_pb2.StopMachineRequest(id="nope"))),
    ("remove", lambda d: d.machine.Remove(machine_pb2.RemoveMachineRequest(id="nope"))),
    ("inspect", lambda d: d.machine.Inspect(machine_pb2.InspectMachineRequest(id="nope"))),
    ("ping", lambda d: d.machine.Ping(machine_pb2.MachineAgentRequest(id="nope"))),
    ("info", lambda d: d.machine.GetSystemInfo(machine_pb2.MachineAgentRequest(id="nope"))),
    ("ssh", lambda d: d.machine.SSHInfo(machine_pb2.SSHInfoRequest(id="nope"))),
    ("extra", lambda d: d.host.InspectExtra(host_pb2.InspectExtraRequest(id="nope"))),
    (
        "exec",
        lambda d: d.machine.Exec(machine_pb2.MachineExecRequest(id="nope", cmd=["x"])).read(),
    ),
]


@pytest.mark.parametrize("request_", [r for _, r in BY_REF], ids=[n for n, _ in BY_REF])
async def test_a_machine_that_does_not_exist(daemon: Daemon, request_: Request) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await request_(daemon)
    error = from_rpc_error(caught.value)
    assert type(error) is errors.MachineNotFoundError
    assert "nope" in error.message
    assert error.hint


@pytest.mark.parametrize("request_", [r for n, r in BY_REF if n in {"ping", "info", "ssh"}])
async def test_a_stopped_machine_does_not_answer(daemon: Daemon, request_: Request) -> None:
    await daemon.create("nope")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await request_(daemon)
    error = from_rpc_error(caught.value)
    assert type(error) is errors.MachineStateError
    assert "arcbox start nope" in error.hint


async def test_other_refusals(daemon: Daemon, world: World) -> None:
    async def refused(call: Awaitable[object], kind: type[errors.ArcboxError], word: str) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        error = from_rpc_error(caught.value)
        assert type(error) is kind
        assert word in error.message

    exec_ = machine_pb2.MachineExecRequest
    await refused(
        daemon.machine.Inspect(machine_pb2.InspectMachineRequest()),
        errors.InvalidArgumentError,
        "named",
    )
    await daemon.create()
    await refused(daemon.create(), errors.MachineExistsError, "dev")
    await refused(
        daemon.machine.Exec(exec_(id="dev", cmd=["true"])).read(),
        errors.MachineStateError,
        "stopped",
    )
    await daemon.machine.Start(machine_pb2.StartMachineRequest(id="dev"))
    await refused(
        daemon.machine.Remove(machine_pb2.RemoveMachineRequest(id="dev")),
        errors.MachineStateError,
        "running",
    )
    for request, word in (
        (exec_(id="dev"), "command"),
        (exec_(id="dev", cmd=["a\0"]), "NUL"),
        (exec_(id="dev", cmd=["a"], working_dir="tmp"), "absolute"),
        (exec_(id="dev", cmd=["a"], env={"A=B": "c"}), "variable"),
        (exec_(id="dev", cmd=["refused"]), "refuses"),
    ):
        await refused(daemon.machine.Exec(request).read(), errors.InvalidArgumentError, word)

    async def no_start() -> AsyncIterator[host_pb2.MachineExecInput]:
        yield host_pb2.MachineExecInput(id="dev", input=guest_pb2.ExecInput(stdin=b"x"))

    await refused(daemon.host.Exec(no_start()).read(), errors.InvalidArgumentError, "start")
    world.agent_answers = False
    await refused(
        daemon.machine.Ping(machine_pb2.MachineAgentRequest(id="dev")),
        errors.AgentUnreachableError,
        "dev",
    )
    world.agent_answers, world.sshd = True, False
    await refused(
        daemon.machine.SSHInfo(machine_pb2.SSHInfoRequest(id="dev")),
        errors.PreconditionError,
        "SSH server",
    )


async def test_a_prefix_must_be_long_enough_and_unique(daemon: Daemon) -> None:
    ids = [await daemon.create(f"m{number}") for number in range(3)]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await daemon.state(ids[0][:3])
    assert caught.value.code() is NOT_FOUND
    assert await daemon.state(ids[0][:8]) == "stopped"


async def test_a_failed_image_leaves_nothing(daemon: Daemon, world: World) -> None:
    world.images_fail = errors.AssetBuildError("the mirror is gone", hint="try another")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await daemon.create()
    error = from_rpc_error(caught.value)
    assert (type(error), error.hint) == (errors.AssetBuildError, "try another")
    assert not list(daemon.paths.machines.iterdir())
    world.images_fail = None
    await daemon.create()
