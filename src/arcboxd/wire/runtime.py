"""The runtime's messages into values and back. What a guest says is cut to a bearable length."""

from __future__ import annotations

from arcboxd.domain.runtime import RuntimeAnswer, RuntimeStatus, ServiceStatus
from arcboxd.wire.pb.arcbox.v1 import agent_pb2

_WORD = 256
_TEXT = 8192
_MAX_SERVICES = 32


def answer(message: agent_pb2.RuntimeEnsureResponse) -> RuntimeAnswer:
    """Read how it went."""
    return RuntimeAnswer(
        ready=message.ready,
        endpoint=message.endpoint[:_WORD],
        message=message.message[:_TEXT],
        status=message.status[:_WORD],
    )


def answer_message(value: RuntimeAnswer) -> agent_pb2.RuntimeEnsureResponse:
    """Tell how it went."""
    return agent_pb2.RuntimeEnsureResponse(
        ready=value.ready,
        endpoint=value.endpoint,
        message=value.message,
        status=value.status,
    )


def status(message: agent_pb2.RuntimeStatusResponse) -> RuntimeStatus:
    """Read how the runtime is."""
    return RuntimeStatus(
        containerd_ready=message.containerd_ready,
        docker_ready=message.docker_ready,
        endpoint=message.endpoint[:_WORD],
        detail=message.detail[:_TEXT],
        services=tuple(
            ServiceStatus(s.name[:_WORD], s.status[:_WORD], s.detail[:_TEXT])
            for s in message.services[:_MAX_SERVICES]
        ),
    )


def status_message(value: RuntimeStatus) -> agent_pb2.RuntimeStatusResponse:
    """Tell how the runtime is."""
    return agent_pb2.RuntimeStatusResponse(
        containerd_ready=value.containerd_ready,
        docker_ready=value.docker_ready,
        endpoint=value.endpoint,
        detail=value.detail,
        services=[
            agent_pb2.ServiceStatus(name=s.name, status=s.status, detail=s.detail)
            for s in value.services
        ],
    )
