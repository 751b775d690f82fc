"""The stub daemon's forwards."""
# ruff: noqa: N802 - the methods have the names of their RPCs

from __future__ import annotations

from arcboxd.errors import PortNotFoundError
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from tests.integration.cli.stub_saved import Context, Inventory, fail

TAKEN = 4040
"""The host's port that another program has."""


class PortCalls:
    """These RPCs of the host."""

    inventory: Inventory
    requests: list[object]

    def AddPort(self, request: host_pb2.AddPortRequest, context: Context) -> host_pb2.Port:
        self.inventory.known(request.id, context)
        self.requests.append(request)
        taken = request.host_port == TAKEN
        return host_pb2.Port(
            machine=request.id,
            protocol=request.protocol,
            host_address=request.host_address or "127.0.0.1",
            host_port=request.host_port or 33333,
            guest_address=request.guest_address,
            guest_port=request.guest_port,
            source="user",
            state="taken" if taken else "open",
            detail="it is taken by machine 'db' (user)" if taken else "",
        )

    def RemovePort(
        self, request: host_pb2.RemovePortRequest, context: Context
    ) -> host_pb2.RemovePortResponse:
        self.inventory.known(request.id, context)
        if request.host_port == TAKEN:
            fail(context, PortNotFoundError("there is no such forward", hint="arcbox port ls"))
        self.requests.append(request)
        return host_pb2.RemovePortResponse()

    def ListPorts(
        self, request: host_pb2.ListPortsRequest, context: Context
    ) -> host_pb2.ListPortsResponse:
        self.requests.append(request)
        ssh = host_pb2.Port(
            machine="web",
            protocol="tcp",
            host_address="127.0.0.1",
            host_port=2222,
            guest_port=22,
            source="ssh",
            state="open",
        )
        dns = host_pb2.Port(
            machine="web",
            protocol="udp",
            host_address="::1",
            host_port=53,
            guest_address="172.17.0.2",
            guest_port=53,
            source="container:\x1b[2Jdns",
            state="failed",
            detail="port 53 is for root only on this host",
        )
        return host_pb2.ListPortsResponse(ports=[ssh, dns])
