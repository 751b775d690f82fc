"""Handlers from descriptors, and how little the agent imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from arcbox_agent.agent_service import AgentService
from arcbox_agent.calls import methods
from arcbox_agent.cgroup import Cgroups
from arcbox_agent.clone import Clone
from arcbox_agent.guest_service import GuestService
from arcbox_agent.kernel import NoKernel
from arcbox_agent.watch import Watch
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2

SOURCE = Path(__file__).parents[3] / "src"
AGENT = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
GUEST = guest_pb2.DESCRIPTOR.services_by_name["GuestService"]


def test_every_method_of_the_services_is_served() -> None:
    kernel, cgroups, watch = NoKernel(), Cgroups(""), Watch()
    clone = Clone(kernel, cgroups, "")
    served = methods(
        (
            (AgentService(kernel, clone, "", cgroups, watch), AGENT),
            (GuestService(kernel, cgroups, clone, "", watch), GUEST),
        )
    )
    assert set(served) == {
        f"/{service.full_name}/{method.name}"
        for service in (AGENT, GUEST)
        for method in service.methods
    }
    ping = served["/arcbox.v1.AgentService/Ping"]
    assert not ping.streaming
    assert ping.request is agent_pb2.AgentPingRequest
    assert ping.response is agent_pb2.AgentPingResponse
    assert served["/arcbox.ext.v1.GuestService/Exec"].streaming


def test_a_missing_method_is_noticed_at_start() -> None:
    with pytest.raises(TypeError, match="Ping"):
        methods([(object(), AGENT)])


def test_start_up_imports_nothing_that_can_wait() -> None:
    program = (
        "import sys; sys.modules['ssl'] = None; import arcbox_agent.main, arcbox_agent.link;"
        "print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={"PYTHONPATH": ":".join([str(SOURCE), *sys.path[1:]])},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    unwanted = {
        "_ssl",
        "argparse",
        "arcbox_agent.configure",
        "arcbox_agent.shutdown",
        "arcbox_agent.sysinfo",
        "ctypes",
        "google.rpc",
        "grpc",
        "grpclib",
        "h2",
        "pwd",
    }
    assert unwanted.isdisjoint(loaded)
