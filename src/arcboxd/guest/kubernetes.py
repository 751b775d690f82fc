"""The agent's calls about Kubernetes."""

from __future__ import annotations

from arcboxd.domain.kubernetes import KubernetesStatus, KubernetesStopped
from arcboxd.guest.calls import AGENT, GUEST, AgentCalls
from arcboxd.wire import kubernetes
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2


class KubernetesCalls(AgentCalls):
    """A part of `arcboxd.guest.agent.LinkedAgent`."""

    async def start_kubernetes(self, timeout_s: float) -> KubernetesStatus:
        """Start the cluster, and answer in time with how it is by then."""
        await self._session()
        response = await self._call(
            AGENT + "StartKubernetes",
            agent_pb2.KubernetesStartRequest(),
            agent_pb2.KubernetesStartResponse,
            timeout_s=timeout_s,
        )
        return kubernetes.started(response)

    async def set_kubernetes_address(self, endpoint: str, context: str) -> None:
        """Tell where the host reaches the cluster."""
        await self._session()
        await self._call(
            GUEST + "SetKubernetesAddress",
            guest_pb2.SetKubernetesAddressRequest(endpoint=endpoint, context=context),
            guest_pb2.SetKubernetesAddressResponse,
        )

    async def stop_kubernetes(self, timeout_s: float) -> KubernetesStopped:
        """Stop the cluster and keep its data."""
        await self._session()
        response = await self._call(
            AGENT + "StopKubernetes",
            agent_pb2.KubernetesStopRequest(),
            agent_pb2.KubernetesStopResponse,
            timeout_s=timeout_s,
        )
        return kubernetes.stopped(response)

    async def delete_kubernetes(self, timeout_s: float) -> str:
        """Stop the cluster and remove all that it was."""
        await self._session()
        response = await self._call(
            AGENT + "DeleteKubernetes",
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
        return kubernetes.status(await self._call(AGENT + "GetKubernetesStatus", request, response))

    async def kubeconfig(self) -> str:
        """Give the guest's kubeconfig, whatever it says."""
        await self._session()
        request = agent_pb2.KubernetesKubeconfigRequest()
        response = agent_pb2.KubernetesKubeconfigResponse
        return (await self._call(AGENT + "GetKubeconfig", request, response)).kubeconfig
