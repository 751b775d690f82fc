"""Settle and what follows it, against the real agent; the system is this host, left as it is."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from arcboxd.wire.pb.arcbox.ext.v1.guest_pb2 import (
    BeginRequest,
    ConfigureRequest,
    Network,
    SettleRequest,
    SshHostKey,
    User,
    WaitForPortRequest,
)
from arcboxd.wire.pb.arcbox.v1.agent_pb2 import ShutdownRequest
from tests.integration.agent.conftest import Agent, Client


@pytest.fixture
async def client(cgroup2: str) -> AsyncIterator[Client]:
    """An agent of its own: what is settled stays so."""
    folder = Path(tempfile.mkdtemp(prefix="ag"))
    agent = Agent(folder, cgroup2)
    async with grpc.aio.insecure_channel(f"unix:{agent.socket}") as channel:
        yield Client(channel, agent.root, agent.process.pid)
    assert agent.stop() == 0
    shutil.rmtree(folder)


def identity(name: str) -> ConfigureRequest:
    key = f"ssh-ed25519 {name} me@host"
    return ConfigureRequest(
        machine_id=uuid.uuid4().hex,
        hostname=name,
        entropy=os.urandom(64),
        user=User(name="me", uid=1234, authorized_keys=[key]),
        ssh_host_keys=[
            SshHostKey(
                type="ed25519",
                private_key="-----BEGIN OPENSSH PRIVATE KEY-----\n"
                f"{name.replace('-', '/')}=\n-----END OPENSSH PRIVATE KEY-----\n",
                public_key=key,
            )
        ],
        disk_bytes=1 << 30,
        network=Network(
            address="10.0.2.15/24",
            gateway="10.0.2.2",
            dns_servers=["10.0.2.3"],
            mac="52:54:00:12:34:56",
        ),
    )


def files(root: Path) -> dict[str, tuple[int, int, str]]:
    found = {}
    for path in sorted((root / "etc").rglob("*")) + sorted((root / "home").rglob("*")):
        state = path.lstat()
        text = path.read_text() if path.is_file() else ""
        found[str(path)] = (state.st_mode, state.st_uid, text)
    return found


async def test_a_clone_is_as_if_it_had_booted_with_its_identity(client: Client) -> None:
    clone, template = identity("clone"), identity("a-template-with-a-longer-name")
    await client.guest.Configure(clone)
    expected = files(client.root)
    first = await client.guest.Configure(template)
    response = await client.guest.Settle(SettleRequest(timeout_millis=10_000))
    assert list(response.warnings) == []
    for each in files(client.root).values():
        assert template.hostname not in each[2]
        assert template.machine_id not in each[2]
    await client.guest.Settle(SettleRequest(timeout_millis=10_000))  # once is enough

    second = await client.guest.Configure(clone)
    assert list(second.warnings) == []
    assert files(client.root) == expected
    assert second.boot_id != first.boot_id
    assert uuid.UUID(second.boot_id).version == 4
    third = await client.guest.Configure(clone)
    assert third.boot_id == second.boot_id
    assert files(client.root) == expected


def forkers(client: Client) -> set[int]:
    children = Path(f"/proc/{client.pid}/task/{client.pid}/children").read_text().split()
    return {
        int(each)
        for each in children
        if Path(f"/proc/{each}/comm").read_text().strip() == "arcbox-forker"
    }


@pytest.mark.parametrize("too_long", [False, True])
async def test_a_clone_s_first_command_is_forked_already(
    client: Client, cgroup2: str, too_long: bool
) -> None:
    if not cgroup2:
        pytest.skip("no cgroup2 here: the forker is not used")
    forker = forkers(client)
    await client.guest.Configure(identity("template"))
    await client.guest.Settle(SettleRequest(timeout_millis=10_000))
    spares = forkers(client) - forker
    assert len(spares) == 2  # one for the first command, one to warm up
    await client.guest.Configure(identity("clone"))
    script = "echo $$ $(ps -o sid= $$) $(grep ^0: /proc/self/cgroup); exit 3"
    first = await client.run("sh", "-c", script, *(["x" * 100_000] if too_long else []))
    pid, session, group = first.stdout.decode().split(maxsplit=2)
    assert (int(pid) in spares) is not too_long
    assert (session, first.code) == (pid, 3)
    assert "/arcbox/exec-" in group
    second = await client.run("sh", "-c", "echo $$")
    assert int(second.stdout) not in {int(pid), *spares}
    assert len(forkers(client) & spares) == 1
    await client.guest.Begin(BeginRequest())
    async with asyncio.timeout(5):
        while forkers(client) != forker:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("asked", ["port", "shutdown", "begin"])
async def test_what_is_held_goes_on_when_it_is_wanted(client: Client, asked: str) -> None:
    fifo = client.root / "run/arcbox/clone"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    await client.guest.Configure(identity("template"))
    await client.guest.Settle(SettleRequest(timeout_millis=10_000))
    await client.guest.Configure(identity("clone"))
    assert os.read(reader, 10) == b""
    match asked:
        case "port":
            with pytest.raises(grpc.aio.AioRpcError):
                await client.guest.WaitForPort(WaitForPortRequest(port=1, timeout_millis=1))
        case "shutdown":
            await client.agent.Shutdown(ShutdownRequest())
        case _:
            # No command runs, so it is at once.
            await client.guest.Begin(BeginRequest())
    assert os.read(reader, 10) == b"go\n"
    os.close(reader)


async def test_bad_values_leave_a_settled_system_settled(client: Client) -> None:
    await client.guest.Configure(identity("template"))
    await client.guest.Settle(SettleRequest(timeout_millis=10_000))
    bad = identity("clone")
    for mac in ("52:54:00:12:34", "53:54:00:12:34:56", "52:54:00:12:34:5G", "52-54-00-12-34-56"):
        bad.network.mac = mac
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.guest.Configure(bad)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert (client.root / "run/arcbox/settled").exists()
    assert (client.root / "etc/hostname").read_text() == ""
