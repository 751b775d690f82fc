"""The agent's calls about Kubernetes."""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

from google.protobuf.message import Message

from arcboxd.domain.kubernetes import KubernetesStatus, KubernetesStopped
from arcboxd.wire import kubernetes
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2

_M = TypeVar("_M", bound=Message)
_AGENT = "/arcbox.v1.AgentService/"
_GUEST = "/arcbox.ext.v1.GuestService/"


class KubernetesCalls:
    """A part of `arcboxd.guest.agent.LinkedAgent`."""

    async def start_kubernetes(self, timeout_s: float) -> KubernetesStatus:
        """Start the cluster, and answer in time with how it is by then."""
        await self._session()
        response = await self._call(
            _AGENT + "StartKubernetes",
            agent_pb2.KubernetesStartRequest(),
            agent_pb2.KubernetesStartResponse,
            timeout_s=timeout_s,
        )
        return kubernetes.started(response)

    async def set_kubernetes_address(self, endpoint: str, context: str) -> None:
        """Tell where the host reaches the cluster."""
        await self._session()
        await self._call(
            _GUEST + "SetKubernetesAddress",
            guest_pb2.SetKubernetesAddressRequest(endpoint=endpoint, context=context),
            guest_pb2.SetKubernetesAddressResponse,
        )

    async def stop_kubernetes(self, timeout_s: float) -> KubernetesStopped:
        """Stop the cluster and keep its data."""
        await self._session()
        response = await self._call(
            _AGENT + "StopKubernetes",
            agent_pb2.KubernetesStopRequest(),
            agent_pb2.KubernetesStopResponse,
            timeout_s=timeout_s,
        )
        return kubernetes.stopped(response)

    async def delete_kubernetes(self, timeout_s: float) -> str:
        """Stop the cluster and remove all that it was."""
        await self._session()
        response = await self._call(
            _AGENT + "DeleteKubernetes",
            agent_pb2.KubernetesDeleteRequest(),
            agent_pb2.KubernetesDeleteResponse,
            timeout_s=timeout_s,
        )
        return kubernetes.deleted(response)

    async def kubernetes_status(self) -> KubernetesStatus:
        """Tell how the cluster is."""
        await self._session()
        request = agent_pb2.KubernetesStatusRequest()
        response = agent_pb2.KubernetesStatusResponse
        return kubernetes.status(
            await self._call(_AGENT + "GetKubernetesStatus", request, response)
        )

    async def kubeconfig(self) -> str:
        """Give the guest's kubeconfig, whatever it says."""
        await self._session()
        request = agent_pb2.KubernetesKubeconfigRequest()
        response = agent_pb2.KubernetesKubeconfigResponse
        return (await self._call(_AGENT + "GetKubeconfig", request, response)).kubeconfig

    @abstractmethod
    async def _session(self) -> None: ...

    @abstractmethod
    async def _call(
        self,
        path: str,
        request: Message,
        response: type[_M],
        *,
        timeout_s: float | None = None,
    ) -> _M: ...
