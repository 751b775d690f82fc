"""AgentService and the rest of GuestService against the real agent."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from arcbox_agent import VERSION
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2
from arcboxd.wire.pb.arcbox.ext.v1.guest_pb2 import ConfigureRequest, Network, SshHostKey, User
from arcboxd.wire.pb.arcbox.v1 import agent_pb2, common_pb2

if TYPE_CHECKING:
    from tests.integration.agent.conftest import Client

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA me@host"
PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\nabc=\n-----END OPENSSH PRIVATE KEY-----\n"


async def test_ping(client: Client) -> None:
    reply = await client.agent.Ping(
        agent_pb2.AgentPingRequest(message="hé", timestamp_secs=int(time.time()))
    )
    assert (reply.message, reply.version) == ("hé", VERSION)


@pytest.mark.parametrize("seconds", [-1, 1, 1 << 62])
async def test_ping_with_a_strange_clock(client: Client, seconds: int) -> None:
    reply = await client.agent.Ping(agent_pb2.AgentPingRequest(timestamp_secs=seconds))
    assert reply.version == VERSION


async def test_system_info_is_true(client: Client) -> None:
    info = await client.agent.GetSystemInfo(common_pb2.Empty())
    kernel = os.uname()
    assert (info.kernel_version, info.arch) == (kernel.release, kernel.machine)
    assert info.hostname == socket.gethostname()
    assert (info.os_name, info.os_version) == ('Test "Linux"', "7")
    assert info.total_memory == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    assert 0 < info.available_memory < info.total_memory
    assert info.cpu_count == os.sysconf("SC_NPROCESSORS_ONLN")
    assert len(info.load_average) == 3
    assert abs(info.uptime - time.clock_gettime(time.CLOCK_BOOTTIME)) < 3
    assert "127.0.0.1" not in info.ip_addresses
    local = set(
        re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", Path("/proc/net/fib_trie").read_text())
    )
    expected = {address for address in local if not address.startswith("127.")}
    assert {address for address in info.ip_addresses if ":" not in address} == expected


async def test_a_cluster_waits_for_its_disk(client: Client) -> None:
    async def start() -> agent_pb2.KubernetesStartResponse:
        return await client.agent.StartKubernetes(agent_pb2.KubernetesStartRequest())

    starting = asyncio.ensure_future(start())
    detail = ""
    async with asyncio.timeout(10):
        while "waits for the disk with Kubernetes" not in detail:
            status = await client.agent.GetKubernetesStatus(agent_pb2.KubernetesStatusRequest())
            assert (status.running, status.api_ready, list(status.services)) == (False, False, [])
            detail = status.detail
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.agent.GetKubeconfig(agent_pb2.KubernetesKubeconfigRequest())
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert (await client.agent.StopKubernetes(agent_pb2.KubernetesStopRequest())).stopped
    assert not (await starting).running
    # Nothing to end and nothing to remove is no error.
    assert (await client.agent.StopKubernetes(agent_pb2.KubernetesStopRequest())).stopped
    assert (await client.agent.DeleteKubernetes(agent_pb2.KubernetesDeleteRequest())).detail


async def test_shutdown_is_acknowledged_and_spares_a_host(client: Client) -> None:
    assert (await client.agent.Shutdown(agent_pb2.ShutdownRequest())).accepted
    await client.agent.Ping(agent_pb2.AgentPingRequest())


async def test_a_message_that_is_too_large_is_refused(client: Client) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.agent.Ping(agent_pb2.AgentPingRequest(message="x" * ((4 << 20) + 1)))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    large = "x" * ((4 << 20) - 100)
    reply = await client.agent.Ping(agent_pb2.AgentPingRequest(message=large[: 3 << 20]))
    assert len(reply.message) == 3 << 20


async def test_a_message_that_cannot_be_decoded(client: Client) -> None:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = client.channel.unary_unary(
        "/arcbox.v1.AgentService/Ping"
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\xff\xff\xff")
    assert caught.value.code() == grpc.StatusCode.INTERNAL


async def test_wait_for_port(client: Client) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        request = guest_pb2.WaitForPortRequest(port=port, timeout_millis=5000)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.guest.WaitForPort(
                guest_pb2.WaitForPortRequest(port=port, timeout_millis=100)
            )
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        listener.listen()
        await client.guest.WaitForPort(request)


async def test_wait_for_a_port_that_cannot_be(client: Client) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.guest.WaitForPort(guest_pb2.WaitForPortRequest(port=70000))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_configure_twice_is_as_once(client: Client) -> None:
    request = ConfigureRequest(
        machine_id="0123456789abcdef0123456789abcdef",
        hostname="dev",
        clock_unix_nanos=time.time_ns(),
        entropy=b"x" * 64,
        user=User(name="me", uid=1234, authorized_keys=[KEY]),
        ssh_host_keys=[SshHostKey(type="ed25519", private_key=PRIVATE, public_key=KEY)],
        disk_bytes=1 << 30,
        network=Network(address="10.0.2.15/24", gateway="10.0.2.2", dns_servers=["10.0.2.3"]),
    )
    gate = client.root / "run/arcbox/gate"
    os.mkfifo(gate)
    reader = os.open(gate, os.O_RDWR)
    reply = await client.guest.Configure(request)
    assert list(reply.warnings) == []
    assert reply.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert await asyncio.to_thread(os.read, reader, 10) == b"go\n"
    os.close(reader)
    first = snapshot(client.root)
    await client.guest.Configure(request)  # nobody reads the gate now
    assert snapshot(client.root) == first

    etc = client.root / "etc"
    assert (etc / "hostname").read_text() == "dev\n"
    assert (etc / "hosts").read_text() == "127.0.0.1\tlocalhost\n127.0.1.1\tdev\n# mine\n"
    assert (etc / "machine-id").read_text() == f"{request.machine_id}\n"
    assert (etc / "resolv.conf").read_text() == "nameserver 10.0.2.3\n"
    assert "me:x:1234:1234:me:/home/me:/bin/sh\n" in (etc / "passwd").read_text()
    assert "sudo:x:27:me\n" in (etc / "group").read_text()
    assert "\nme:*:" in (etc / "shadow").read_text()
    assert mode(etc / "shadow") == 0o640
    assert mode(etc / "sudoers.d/90-arcbox") == 0o440
    assert mode(etc / "ssh/ssh_host_ed25519_key") == 0o600
    assert mode(etc / "ssh/ssh_host_ed25519_key.pub") == 0o644
    home = client.root / "home/me"
    assert (home / ".profile").stat().st_uid == (home / ".config").stat().st_uid == 1234
    assert (home.stat().st_uid, mode(home / ".ssh")) == (1234, 0o700)
    keys = home / ".ssh/authorized_keys"
    assert (keys.stat().st_uid, mode(keys)) == (1234, 0o600)
    result = await client.run("id", "-u", start=guest_pb2.ExecStart(user="me"))
    assert result.stdout == b"1234\n"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def snapshot(root: Path) -> dict[str, tuple[int, int, str]]:
    found = {}
    for path in sorted(root.rglob("*")):
        state = path.lstat()
        text = path.read_text() if path.is_file() else ""
        found[str(path)] = (state.st_mode, state.st_uid, text)
    return found


@pytest.mark.parametrize(
    "request_",
    [
        ConfigureRequest(machine_id="short"),
        ConfigureRequest(machine_id="0123456789ABCDEF0123456789ABCDEF"),
        ConfigureRequest(hostname="-x"),
        ConfigureRequest(hostname="a b"),
        ConfigureRequest(hostname="a\nb"),
        ConfigureRequest(hostname="dev\n"),
        ConfigureRequest(hostname="x" * 65),
        ConfigureRequest(hostname="x."),
        ConfigureRequest(user=User(name="1st")),
        ConfigureRequest(user=User(name="x" * 33)),
        ConfigureRequest(network=Network(mac="52:54:00:12:34")),
        ConfigureRequest(network=Network(mac="52:54:00:12:34:5G")),
        ConfigureRequest(network=Network(mac="5254:0:12:34:56:7")),
        ConfigureRequest(network=Network(mac="01:00:5e:00:00:01")),
        ConfigureRequest(
            ssh_host_keys=[SshHostKey(type="rsa", private_key=PRIVATE + "\n", public_key=KEY)]
        ),
        ConfigureRequest(user=User(name="")),
        ConfigureRequest(user=User(name="a:b")),
        ConfigureRequest(user=User(name="a\nroot2:x:0:0::/:/bin/sh")),
        ConfigureRequest(user=User(name="../up")),
        ConfigureRequest(user=User(name="ALL")),
        ConfigureRequest(user=User(name="me", uid=0xFFFFFFFF)),
        ConfigureRequest(user=User(name="me", authorized_keys=["a\nb"])),
        ConfigureRequest(user=User(name="me", authorized_keys=[""])),
        ConfigureRequest(user=User(name="me", authorized_keys=["# arcbox: end"])),
        ConfigureRequest(
            ssh_host_keys=[SshHostKey(type="../x", private_key=PRIVATE, public_key=KEY)]
        ),
        ConfigureRequest(ssh_host_keys=[SshHostKey(type="rsa", private_key="x", public_key=KEY)]),
        ConfigureRequest(
            ssh_host_keys=[SshHostKey(type="rsa", private_key=PRIVATE, public_key="a\nb")]
        ),
        ConfigureRequest(network=Network(address="10.0.2.15/99")),
        ConfigureRequest(network=Network(gateway="nowhere")),
        ConfigureRequest(network=Network(dns_servers=["1.1.1.1\nevil"])),
        ConfigureRequest(entropy=b"x" * 5000),
    ],
)
async def test_bad_values_change_nothing(client: Client, request_: ConfigureRequest) -> None:
    before = snapshot(client.root)
    good = ConfigureRequest(hostname="other", machine_id="f" * 32)
    good.MergeFrom(request_)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.guest.Configure(good)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert snapshot(client.root) == before


async def test_an_existing_user_is_kept_and_what_is_theirs_too(client: Client) -> None:
    home = client.root / "home/alice"
    (home / ".ssh").mkdir(parents=True)
    keys = home / ".ssh/authorized_keys"
    keys.write_text("ssh-rsa OWN\n")
    for path in (home, home / ".ssh", keys):
        os.chown(path, 4242, 4242)
    for wanted in ([KEY], [KEY, KEY + "2"], []):
        user = User(name="alice", uid=9, authorized_keys=wanted)
        reply = await client.guest.Configure(ConfigureRequest(user=user))
        assert list(reply.warnings) == []
        lines = keys.read_text().splitlines()
        assert lines[0] == "ssh-rsa OWN"
        assert [line for line in lines[1:] if not line.startswith("#")] == wanted
    assert "alice:x:4242:4242::/home/alice:/bin/sh\n" in (client.root / "etc/passwd").read_text()


@pytest.mark.parametrize("trap", ["keys", "hard link", "folder", "home"])
async def test_links_in_a_home_are_not_followed(client: Client, trap: str) -> None:
    name = "u" + trap.replace(" ", "")
    first = await client.guest.Configure(ConfigureRequest(user=User(name=name)))
    assert list(first.warnings) == []
    home = client.root / "home" / name
    secret = client.root / f"secret-{name}"
    secret.mkdir()
    (secret / "authorized_keys").write_text("precious\n")
    keys = home / ".ssh/authorized_keys"
    match trap:
        case "keys":
            keys.symlink_to(secret / "authorized_keys")
        case "hard link":
            keys.hardlink_to(secret / "authorized_keys")
        case "folder":
            (home / ".ssh").rmdir()
            (home / ".ssh").symlink_to(secret)
        case _:
            home.rename(home.with_name("moved" + name))
            home.symlink_to(secret)
    user = User(name=name, authorized_keys=[KEY])
    reply = await client.guest.Configure(ConfigureRequest(user=user))
    assert len(reply.warnings) == 1
    assert name in reply.warnings[0]
    assert (secret / "authorized_keys").read_text() == "precious\n"
    assert secret.stat().st_uid == 0
    assert mode(secret / "authorized_keys") == 0o644


async def test_resolvers_of_the_distribution_are_kept(client: Client) -> None:
    path = client.root / "etc/resolv.conf"
    request = ConfigureRequest(network=Network(dns_servers=["10.0.2.3"]))
    path.write_text("nameserver 9.9.9.9\n")
    await client.guest.Configure(request)
    assert path.read_text() == "nameserver 9.9.9.9\n"
    path.unlink()
    path.symlink_to("/run/nowhere/stub-resolv.conf")
    await client.guest.Configure(request)
    assert not path.is_symlink()
    assert path.read_text() == "nameserver 10.0.2.3\n"


async def test_trim_answers_a_sentence(client: Client) -> None:
    async with asyncio.timeout(15):
        assert (await client.agent.DiskTrim(agent_pb2.DiskTrimRequest())).result
