"""The stub daemon's Kubernetes."""
# ruff: noqa: N802 - the methods have the names of their RPCs

from __future__ import annotations

from arcboxd.errors import ArcboxError
from arcboxd.kubernetes.kubeconfig import Credentials, render
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2, host_pb2_grpc
from arcboxd.wire.pb.arcbox.v1 import agent_pb2
from tests.integration.cli.stub_saved import Context, Inventory, fail
from tests.unit.kubernetes.certificates import pair

ENDPOINT = "https://127.0.0.1:16443"


class KubernetesHost(host_pb2_grpc.HostServiceServicer):
    """These RPCs of the host; the others are the stub's own."""

    inventory: Inventory
    cluster_error: ArcboxError | None = None
    cluster_runs = True
    cluster_ready_after = 1_000_000
    """Calls of start until it is."""

    def _known(self, ref: str, context: Context) -> None:
        if ref:
            self.inventory.known(ref, context)
        if self.cluster_error is not None:
            fail(context, self.cluster_error)

    def StartKubernetes(
        self, request: host_pb2.StartKubernetesRequest, context: Context
    ) -> agent_pb2.KubernetesStartResponse:
        self._known(request.id, context)
        self.cluster_ready_after -= 1
        return agent_pb2.KubernetesStartResponse(
            running=self.cluster_runs,
            api_ready=self.cluster_ready_after <= 0,
            endpoint=ENDPOINT,
            detail="k3s: it begins",
        )

    def StopKubernetes(
        self, request: host_pb2.StopKubernetesRequest, context: Context
    ) -> agent_pb2.KubernetesStopResponse:
        self._known(request.id, context)
        return agent_pb2.KubernetesStopResponse(stopped=self.cluster_runs, detail="it hangs")

    def DeleteKubernetes(
        self, request: host_pb2.DeleteKubernetesRequest, context: Context
    ) -> agent_pb2.KubernetesDeleteResponse:
        self._known(request.id, context)
        return agent_pb2.KubernetesDeleteResponse()

    def GetKubernetesStatus(
        self, request: host_pb2.GetKubernetesStatusRequest, context: Context
    ) -> agent_pb2.KubernetesStatusResponse:
        self._known(request.id, context)
        services = [agent_pb2.ServiceStatus(name="k3s", status="ready", detail="v1.36.4")]
        return agent_pb2.KubernetesStatusResponse(
            running=True, api_ready=True, endpoint=ENDPOINT, services=services
        )

    def GetKubeconfig(
        self, request: host_pb2.GetKubeconfigRequest, context: Context
    ) -> agent_pb2.KubernetesKubeconfigResponse:
        self._known(request.id, context)
        name = f"arcbox-{request.id}" if request.id else "arcbox"
        found = Credentials(pair("authority")[0], *pair())
        return agent_pb2.KubernetesKubeconfigResponse(
            kubeconfig=render(found, context=name, server=ENDPOINT).decode(),
            context_name=name,
            endpoint=ENDPOINT,
        )
