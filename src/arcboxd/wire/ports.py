"""Forwards and what a guest says of its ports: messages into values and back."""

from __future__ import annotations

from arcboxd.domain.ports import (
    GuestEvent,
    KubernetesWanted,
    Port,
    PortBinding,
    PortsPublished,
    PortsWithdrawn,
    RuntimeWanted,
    Synced,
    UserForward,
)
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2, host_pb2

_NAME = 128
_WORD = 64
_MAX_BINDINGS = 1000


def guest_event(message: guest_pb2.GuestEvent) -> GuestEvent | None:
    """Read what a guest tells, cut to a bearable length; None for what makes no sense to us."""
    match message.WhichOneof("event"):
        case "ports" if message.ports.changed.container_id:
            return _published(message.ports)
        case "removed" if message.removed.container_id:
            return PortsWithdrawn(message.removed.container_id[:_NAME])
        case "synced":
            return Synced()
        case "runtime_wanted":
            return RuntimeWanted()
        case "kubernetes_wanted":
            return KubernetesWanted()
        case _:
            return None


def _published(message: guest_pb2.PublishedPorts) -> PortsPublished:
    container_id = message.changed.container_id[:_NAME]
    name = message.name[:_NAME] or container_id[:12]
    bindings = [
        PortBinding(
            protocol=binding.protocol[:_WORD],
            host_address=binding.host_ip[:_WORD],
            host_port=binding.host_port,
            container_address=target.address[:_WORD],
            container_port=target.port,
        )
        for binding, target in zip(
            message.changed.bindings[:_MAX_BINDINGS],
            message.targets[:_MAX_BINDINGS],
            strict=False,
        )
    ]
    # A container's name has no slash; a service's is NAMESPACE/NAME.
    source = f"{'service' if '/' in name else 'container'}:{name}"
    return PortsPublished(container_id, source, tuple(bindings))


def port_message(port: Port) -> host_pb2.Port:
    """Show a forward."""
    return host_pb2.Port(
        machine=port.machine,
        protocol=port.protocol,
        host_address=port.host_address,
        host_port=port.host_port,
        guest_address=port.guest_address,
        guest_port=port.guest_port,
        source=port.source,
        state=port.state.value,
        detail=port.detail,
    )


def forward(request: host_pb2.AddPortRequest) -> UserForward:
    """Read what the user asks for; what is left open stays so."""
    return UserForward(
        protocol=request.protocol,
        host_address=request.host_address,
        host_port=request.host_port,
        guest_address=request.guest_address,
        guest_port=request.guest_port,
    )
