"""The stub daemon's container runtime."""
# ruff: noqa: N802 - the methods have the names of their RPCs

from __future__ import annotations

from arcboxd.domain.runtime import FAILED, NOT_READY
from arcboxd.errors import MachineNotFoundError
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2, host_pb2_grpc
from arcboxd.wire.pb.arcbox.v1 import agent_pb2
from tests.integration.cli.stub_saved import Context, Inventory, fail


class DockerHost(host_pb2_grpc.HostServiceServicer):
    """These RPCs of the host; the others are the stub's own."""

    inventory: Inventory
    failure = ""

    def EnsureRuntime(
        self, request: host_pb2.EnsureMachineRuntimeRequest, context: Context
    ) -> agent_pb2.RuntimeEnsureResponse:
        assert request.start_if_needed
        if request.id:
            self.inventory.known(request.id, context)
        if self.failure:
            return agent_pb2.RuntimeEnsureResponse(message=self.failure, status=FAILED)
        endpoint = "unix:///var/run/docker.sock"
        return agent_pb2.RuntimeEnsureResponse(ready=True, endpoint=endpoint, status="started")

    def GetRuntimeStatus(
        self, request: host_pb2.MachineRuntimeStatusRequest, context: Context
    ) -> agent_pb2.RuntimeStatusResponse:
        if not request.id:
            fail(context, MachineNotFoundError("there is no machine 'default'"))
        self.inventory.known(request.id, context)
        services = [
            agent_pb2.ServiceStatus(name="containerd", status="ready", detail="1.7.24"),
            agent_pb2.ServiceStatus(name="dockerd", status=NOT_READY),
        ]
        return agent_pb2.RuntimeStatusResponse(containerd_ready=True, services=services)
