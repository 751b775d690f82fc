"""Kubernetes' messages into values and back. What a guest says is cut to a bearable length."""

from __future__ import annotations

from arcboxd.domain.kubernetes import Kubeconfig, KubernetesStatus, KubernetesStopped
from arcboxd.domain.runtime import ServiceStatus
from arcboxd.wire.pb.arcbox.v1 import agent_pb2

_WORD = 256
_TEXT = 8192
_MAX_SERVICES = 64


def started(message: agent_pb2.KubernetesStartResponse) -> KubernetesStatus:
    """Read how a start went."""
    return KubernetesStatus(
        message.running, message.api_ready, message.endpoint[:_WORD], message.detail[:_TEXT]
    )


def started_message(value: KubernetesStatus) -> agent_pb2.KubernetesStartResponse:
    """Tell how a start went."""
    return agent_pb2.KubernetesStartResponse(
        running=value.running,
        api_ready=value.api_ready,
        endpoint=value.endpoint,
        detail=value.detail,
    )


def stopped(message: agent_pb2.KubernetesStopResponse) -> KubernetesStopped:
    """Read how a stop went."""
    return KubernetesStopped(message.stopped, message.detail[:_TEXT])


def stopped_message(value: KubernetesStopped) -> agent_pb2.KubernetesStopResponse:
    """Tell how a stop went."""
    return agent_pb2.KubernetesStopResponse(stopped=value.stopped, detail=value.detail)


def deleted(message: agent_pb2.KubernetesDeleteResponse) -> str:
    """Read what a removal did."""
    return message.detail[:_TEXT]


def status(message: agent_pb2.KubernetesStatusResponse) -> KubernetesStatus:
    """Read how a cluster is."""
    return KubernetesStatus(
        running=message.running,
        api_ready=message.api_ready,
        endpoint=message.endpoint[:_WORD],
        detail=message.detail[:_TEXT],
        services=tuple(
            ServiceStatus(s.name[:_WORD], s.status[:_WORD], s.detail[:_TEXT])
            for s in message.services[:_MAX_SERVICES]
        ),
    )


def status_message(value: KubernetesStatus) -> agent_pb2.KubernetesStatusResponse:
    """Tell how a cluster is."""
    return agent_pb2.KubernetesStatusResponse(
        running=value.running,
        api_ready=value.api_ready,
        endpoint=value.endpoint,
        detail=value.detail,
        services=[
            agent_pb2.ServiceStatus(name=s.name, status=s.status, detail=s.detail)
            for s in value.services
        ],
    )


def kubeconfig(message: agent_pb2.KubernetesKubeconfigResponse) -> Kubeconfig:
    """Read a kubeconfig of the host's."""
    return Kubeconfig(message.kubeconfig, message.context_name, message.endpoint)


def kubeconfig_message(value: Kubeconfig) -> agent_pb2.KubernetesKubeconfigResponse:
    """Give a kubeconfig."""
    return agent_pb2.KubernetesKubeconfigResponse(
        kubeconfig=value.text, context_name=value.context, endpoint=value.endpoint
    )
