"""Kubernetes' calls: what passes between a guest and the host's clients, and which port is kept."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
import pytest
from ruamel.yaml import YAML

from arcboxd import errors
from arcboxd.domain.ports import PortState
from arcboxd.machines import kubernetes_port
from arcboxd.paths import Paths
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from arcboxd.wire.pb.arcbox.v1 import machine_pb2
from arcboxd.wire.status import from_rpc_error
from tests.fakes import World
from tests.integration.daemon.conftest import Daemon, start_daemon
from tests.unit.kubernetes.test_kubeconfig import good


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arcboxd.machines.context._FIRST_COMMAND_S", 0.0)


@pytest.fixture(autouse=True)
def first(monkeypatch: pytest.MonkeyPatch) -> int:
    """Give the first port, one that nobody has on this host."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
    monkeypatch.setattr(kubernetes_port, "FIRST_PORT", port)
    return port


async def _start(daemon: Daemon, name: str = "dev") -> None:
    await daemon.create(name)
    await daemon.machine.Start(machine_pb2.StartMachineRequest(id=name))


async def _cluster(daemon: Daemon, name: str = "dev") -> str:
    answer = await daemon.host.StartKubernetes(host_pb2.StartKubernetesRequest(id=name))
    assert answer.running
    return answer.endpoint


async def _ports(daemon: Daemon, name: str = "dev") -> list[tuple[int, int, str]]:
    listed = await daemon.host.ListPorts(host_pb2.ListPortsRequest(id=name))
    return [(p.host_port, p.guest_port, p.state) for p in listed.ports if p.source == "kubernetes"]


async def _until(daemon: Daemon, wanted: list[tuple[int, int, str]]) -> None:
    async with asyncio.timeout(5):
        while await _ports(daemon) != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_agent_without_kubernetes_is_told_in_a_sentence(daemon: Daemon) -> None:
    await _start(daemon)
    calls = (
        daemon.host.StartKubernetes(host_pb2.StartKubernetesRequest(id="dev")),
        daemon.host.StopKubernetes(host_pb2.StopKubernetesRequest(id="dev")),
        daemon.host.DeleteKubernetes(host_pb2.DeleteKubernetesRequest(id="dev")),
        daemon.host.GetKubernetesStatus(host_pb2.GetKubernetesStatusRequest(id="dev")),
        daemon.host.GetKubeconfig(host_pb2.GetKubeconfigRequest(id="dev")),
    )
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        error = from_rpc_error(caught.value)
        assert isinstance(error, errors.UnsupportedError)
        assert error.message == "This version of the agent cannot run a Kubernetes cluster."
    # And no port is taken for a cluster that is not there.
    assert await _ports(daemon) == []


async def test_each_cluster_keeps_a_port_of_its_own(
    daemon: Daemon, world: World, first: int
) -> None:
    world.cluster.supported = True
    await _start(daemon)
    await _start(daemon, "web")
    assert await _cluster(daemon) == f"https://127.0.0.1:{first}"
    second = await _cluster(daemon, "web")
    assert second != f"https://127.0.0.1:{first}"
    assert await _cluster(daemon) == f"https://127.0.0.1:{first}"
    await _until(daemon, [(first, 6443, PortState.OPEN)])
    await daemon.machine.Stop(machine_pb2.StopMachineRequest(id="dev", force=True))
    status = await daemon.host.GetKubernetesStatus(host_pb2.GetKubernetesStatusRequest(id="dev"))
    assert (status.running, status.detail) == (False, "machine 'dev' is stopped")
    assert status.endpoint == f"https://127.0.0.1:{first}"
    await daemon.machine.Start(machine_pb2.StartMachineRequest(id="dev"))
    await _until(daemon, [(first, 6443, PortState.OPEN)])
    await daemon.host.DeleteKubernetes(host_pb2.DeleteKubernetesRequest(id="dev"))
    await _until(daemon, [])


async def test_a_taken_port_is_passed_over(daemon: Daemon, world: World, first: int) -> None:
    world.cluster.supported = True
    await _start(daemon)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", first))
        sock.listen()
        assert await _cluster(daemon) != f"https://127.0.0.1:{first}"


async def test_another_daemon_finds_the_port(paths: Paths, world: World, first: int) -> None:
    world.cluster.supported = True
    async with AsyncExitStack() as stack:
        daemon = await start_daemon(paths, world, stack)
        await _start(daemon)
        await _cluster(daemon)
    async with AsyncExitStack() as stack:
        daemon = await start_daemon(paths, world, stack)
        await daemon.until("running")
        await _until(daemon, [(first, 6443, PortState.OPEN)])
        assert await _cluster(daemon) == f"https://127.0.0.1:{first}"


async def test_the_kubeconfig_is_made_anew(daemon: Daemon, world: World, first: int) -> None:
    world.cluster.supported = True
    world.cluster.text = json.dumps(good())
    await _start(daemon)
    request = host_pb2.GetKubeconfigRequest(id="dev")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await daemon.host.GetKubeconfig(request)
    error = from_rpc_error(caught.value)
    assert isinstance(error, errors.PreconditionError)
    assert error.hint == "make one with: arcbox k8s start dev"
    await _cluster(daemon)
    answer = await daemon.host.GetKubeconfig(request)
    assert (answer.context_name, answer.endpoint) == ("arcbox-dev", f"https://127.0.0.1:{first}")
    found = YAML(typ="safe", pure=True).load(answer.kubeconfig)
    assert found["clusters"][0]["cluster"]["server"] == answer.endpoint
    await _start(daemon, "default")
    await _cluster(daemon, "default")
    answer = await daemon.host.GetKubeconfig(host_pb2.GetKubeconfigRequest())
    assert answer.context_name == "arcbox"


async def test_a_hostile_kubeconfig_does_not_reach_a_client(daemon: Daemon, world: World) -> None:
    world.cluster.supported = True
    config = good()
    config["users"][0]["user"] = {"exec": {"command": "/bin/sh"}}
    world.cluster.text = json.dumps(config)
    await _start(daemon)
    await _cluster(daemon)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await daemon.host.GetKubeconfig(host_pb2.GetKubeconfigRequest(id="dev"))
    error = from_rpc_error(caught.value)
    assert isinstance(error, errors.CorruptError)
    assert "'exec'" in error.message


async def test_a_damaged_record_of_the_port_is_no_port(
    daemon: Daemon, world: World, paths: Paths, first: int
) -> None:
    world.cluster.supported = True
    await _start(daemon)
    (directory,) = Path(paths.machines).iterdir()
    (directory / "kubernetes_port").write_text("70000")
    assert await _cluster(daemon) == f"https://127.0.0.1:{first}"
