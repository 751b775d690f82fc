"""The gRPC server on the daemon's unix socket."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import grpc.aio
from grpc_health.v1 import (  # type: ignore[import-untyped]
    health,
    health_pb2,
    health_pb2_grpc,
)
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from arcboxd.machines.service import Machines
from arcboxd.paths import Paths
from arcboxd.servicers.host import HostService
from arcboxd.servicers.machine import MachineService
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2, host_pb2_grpc
from arcboxd.wire.pb.arcbox.v1 import machine_pb2, machine_pb2_grpc

MAX_MESSAGE_BYTES = 4 << 20
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Else a second server could bind the same address and take some of the calls.
    ("grpc.so_reuseport", 0),
)
_STOP_GRACE_S = 1.0


class Server:
    """Serves the machines' services, health and reflection."""

    def __init__(self, machines: Machines, paths: Paths, stop: Callable[[], None]) -> None:
        """Prepare; `start` begins.

        Args:
            machines: What is served.
            paths: Where the socket is.
            stop: Called when a client asks the daemon to end.
        """
        self._path = paths.socket
        self._server = grpc.aio.server(options=_OPTIONS)
        machine_pb2_grpc.add_MachineServiceServicer_to_server(
            MachineService(machines), self._server
        )
        host_pb2_grpc.add_HostServiceServicer_to_server(HostService(machines, stop), self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._names = (
            machine_pb2.DESCRIPTOR.services_by_name["MachineService"].full_name,
            host_pb2.DESCRIPTOR.services_by_name["HostService"].full_name,
        )
        reflection.enable_server_reflection(
            (*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    async def start(self) -> None:
        """Serve; the socket's mode is 0600, and its directory's 0700."""
        self._server.add_insecure_port(f"unix:{quote(str(self._path))}")
        await self._server.start()
        self._path.chmod(0o600)
        for name in ("", *self._names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Take no more calls, give those under way a second, and cancel them."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(_STOP_GRACE_S)
