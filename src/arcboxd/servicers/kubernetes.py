"""HostService's calls about Kubernetes."""

from __future__ import annotations

from arcboxd.machines.service import Machines
from arcboxd.servicers.translate import Context, unary
from arcboxd.wire import kubernetes
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2


class KubernetesCalls:
    """A part of `arcboxd.servicers.host.HostService`."""

    _machines: Machines

    @unary
    async def StartKubernetes(
        self,
        request: host_pb2.StartKubernetesRequest,
        context: Context[  # noqa: ARG002
            host_pb2.StartKubernetesRequest, agent_pb2.KubernetesStartResponse
        ],
    ) -> agent_pb2.KubernetesStartResponse:
        return kubernetes.started_message(await self._machines.start_kubernetes(request.id))

    @unary
    async def StopKubernetes(
        self,
        request: host_pb2.StopKubernetesRequest,
        context: Context[  # noqa: ARG002
            host_pb2.StopKubernetesRequest, agent_pb2.KubernetesStopResponse
        ],
    ) -> agent_pb2.KubernetesStopResponse:
        return kubernetes.stopped_message(await self._machines.stop_kubernetes(request.id))

    @unary
    async def DeleteKubernetes(
        self,
        request: host_pb2.DeleteKubernetesRequest,
        context: Context[  # noqa: ARG002
            host_pb2.DeleteKubernetesRequest, agent_pb2.KubernetesDeleteResponse
        ],
    ) -> agent_pb2.KubernetesDeleteResponse:
        detail = await self._machines.delete_kubernetes(request.id)
        return agent_pb2.KubernetesDeleteResponse(detail=detail)

    @unary
    async def GetKubernetesStatus(
        self,
        request: host_pb2.GetKubernetesStatusRequest,
        context: Context[  # noqa: ARG002
            host_pb2.GetKubernetesStatusRequest, agent_pb2.KubernetesStatusResponse
        ],
    ) -> agent_pb2.KubernetesStatusResponse:
        return kubernetes.status_message(await self._machines.kubernetes_status(request.id))

    @unary
    async def GetKubeconfig(
        self,
        request: host_pb2.GetKubeconfigRequest,
        context: Context[  # noqa: ARG002
            host_pb2.GetKubeconfigRequest, agent_pb2.KubernetesKubeconfigResponse
        ],
    ) -> agent_pb2.KubernetesKubeconfigResponse:
        return kubernetes.kubeconfig_message(await self._machines.kubeconfig(request.id))
