"""HostService's calls about forwards."""

from __future__ import annotations

from arcboxd.machines.service import Machines
from arcboxd.servicers.translate import Context, unary
from arcboxd.wire import ports
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2


class PortCalls:
    """A part of `arcboxd.servicers.host.HostService`."""

    _machines: Machines

    @unary
    async def AddPort(
        self,
        request: host_pb2.AddPortRequest,
        context: Context[host_pb2.AddPortRequest, host_pb2.Port],  # noqa: ARG002
    ) -> host_pb2.Port:
        return ports.port_message(await self._machines.add_port(request.id, ports.forward(request)))

    @unary
    async def RemovePort(
        self,
        request: host_pb2.RemovePortRequest,
        context: Context[host_pb2.RemovePortRequest, host_pb2.RemovePortResponse],  # noqa: ARG002
    ) -> host_pb2.RemovePortResponse:
        await self._machines.remove_port(
            request.id,
            protocol=request.protocol,
            host_address=request.host_address,
            host_port=request.host_port,
        )
        return host_pb2.RemovePortResponse()

    @unary
    async def ListPorts(
        self,
        request: host_pb2.ListPortsRequest,
        context: Context[host_pb2.ListPortsRequest, host_pb2.ListPortsResponse],  # noqa: ARG002
    ) -> host_pb2.ListPortsResponse:
        found = await self._machines.ports(request.id)
        return host_pb2.ListPortsResponse(ports=map(ports.port_message, found))
