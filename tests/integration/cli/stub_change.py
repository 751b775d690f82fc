"""The stub daemon's changes of machines, and what a machine's file holds."""
# ruff: noqa: N802 - the methods have the names of their RPCs

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2, host_pb2_grpc
from arcboxd.wire.pb.arcbox.v1 import agent_pb2
from tests.integration.cli.stub_saved import Context


class ChangeHost(host_pb2_grpc.HostServiceServicer):
    """These RPCs of the host; the others are the stub's own."""

    @cached_property
    def changes(self) -> list[host_pb2.SetMachineRequest]:
        return []

    @cached_property
    def waited(self) -> list[str]:
        return []

    def SetMachine(
        self, request: host_pb2.SetMachineRequest, context: Context
    ) -> host_pb2.SetMachineResponse:
        self.changes.append(request)
        return host_pb2.SetMachineResponse()

    def WaitBooted(
        self, request: host_pb2.MachineWaitBootedRequest, context: Context
    ) -> host_pb2.MachineWaitBootedResponse:
        self.waited.append(request.id)
        return host_pb2.MachineWaitBootedResponse(failed=["cups.service", "\x1b[2J"])

    def MmapReadFile(
        self, request: host_pb2.MachineMmapReadFileRequest, context: Context
    ) -> Iterator[agent_pb2.MmapReadFileResponse]:
        yield agent_pb2.MmapReadFileResponse(data=b"data", bytes_read=4)
