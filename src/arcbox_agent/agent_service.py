"""AgentService: the part of the published contract that the guest serves."""

# pathlib is not imported and imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415, PTH112

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from arcbox_agent import VERSION, files
from arcboxd import aio
from arcboxd.wire.pb.arcbox.v1 import agent_pb2

if TYPE_CHECKING:
    import asyncio

    from arcbox_agent.cgroup import Cgroups
    from arcbox_agent.clone import Clone
    from arcbox_agent.kernel import Kernel
    from arcbox_agent.kubernetes import Kubernetes
    from arcbox_agent.runtime import Runtime
    from arcbox_agent.watch import Watch
    from arcboxd.wire.pb.arcbox.v1 import common_pb2

SERVICES = "run/arcbox/services"
"""The records of the services under supervision."""

_CLOCK_TOLERANCE_S = 1
_CONTAINERS_S = 10.0  # for dockerd to stop containers, of the grace of a shutdown
_LEAST_GRACE_S = 1.0
_MAX_UNIX_S = 1 << 33  # the year 2242: beyond it nobody is serious

_log = logging.getLogger(__name__)


class AgentService:
    """Serves arcbox.v1.AgentService, one method an RPC. See agent.proto for what each means."""

    def __init__(
        self, kernel: Kernel, clone: Clone, root: str, cgroups: Cgroups, watch: Watch
    ) -> None:
        """Serve for the system whose files lie below `root`."""
        self._kernel = kernel
        self._clone = clone
        self._root = root
        self._cgroups = cgroups
        self._watch = watch
        self._runtime: Runtime | None = None
        self._kubernetes: Kubernetes | None = None
        self._shutdown: asyncio.Task[None] | None = None

    async def Ping(self, request: agent_pb2.AgentPingRequest) -> agent_pb2.AgentPingResponse:
        """Echo, and set a clock that is off by over a second, if it can be set."""
        wanted = request.timestamp_secs
        if 0 < wanted < _MAX_UNIX_S and abs(time.time() - wanted) > _CLOCK_TOLERANCE_S:
            try:
                self._kernel.set_clock(wanted * 1_000_000_000)
            except OSError as error:
                _log.warning("cannot set the clock: %s", error)
        return agent_pb2.AgentPingResponse(message=request.message, version=VERSION)

    async def GetSystemInfo(self, _request: common_pb2.Empty) -> agent_pb2.SystemInfo:
        """Describe the guest."""
        from arcbox_agent import sysinfo

        return sysinfo.read(self._root)

    async def EnsureRuntime(
        self, request: agent_pb2.RuntimeEnsureRequest
    ) -> agent_pb2.RuntimeEnsureResponse:
        """Bring containerd and dockerd up, or only look whether they are."""
        return await self.runtime().ensure(start=request.start_if_needed)

    async def GetRuntimeStatus(
        self, _request: agent_pb2.RuntimeStatusRequest
    ) -> agent_pb2.RuntimeStatusResponse:
        """Say how containerd, dockerd and runc are."""
        return await self.runtime().status()

    def runtime(self) -> Runtime:
        """Give the container runtime, which takes over what an agent before this one started."""
        if self._runtime is None:
            from arcbox_agent.runtime import Runtime
            from arcbox_agent.runtime_system import NoRuntimeSystem, RuntimeSystem
            from arcbox_agent.supervisor import Supervisor

            system = (NoRuntimeSystem if self._root else RuntimeSystem)(self._cgroups)
            supervisor = Supervisor(self._cgroups, f"{self._root}/{SERVICES}")
            supervisor.adopt()
            self._runtime = Runtime(
                supervisor,
                system,
                self._watch,
                user=self._user,
                root=self._root,
                hierarchy=self._cgroups.hierarchy,
            )
        return self._runtime

    def _user(self) -> str:
        return self._clone.configured.user.name

    def take_over_services(self) -> None:
        """See to the services that an agent before this one started, if there are any."""
        if os.path.isdir(f"{self._root}/{SERVICES}"):
            self.runtime()

    async def StartKubernetes(
        self, _request: agent_pb2.KubernetesStartRequest
    ) -> agent_pb2.KubernetesStartResponse:
        """Bring the cluster up, and answer with how it is by then."""
        return await self.kubernetes().start()

    async def StopKubernetes(
        self, _request: agent_pb2.KubernetesStopRequest
    ) -> agent_pb2.KubernetesStopResponse:
        """End the cluster's processes and pods; keep its data."""
        return await self.kubernetes().stop()

    async def DeleteKubernetes(
        self, _request: agent_pb2.KubernetesDeleteRequest
    ) -> agent_pb2.KubernetesDeleteResponse:
        """End the cluster and remove all that it was."""
        return await self.kubernetes().delete()

    async def GetKubernetesStatus(
        self, _request: agent_pb2.KubernetesStatusRequest
    ) -> agent_pb2.KubernetesStatusResponse:
        """Say how the cluster and its parts are."""
        return await self.kubernetes().status()

    async def GetKubeconfig(
        self, _request: agent_pb2.KubernetesKubeconfigRequest
    ) -> agent_pb2.KubernetesKubeconfigResponse:
        """Give the administrator's kubeconfig."""
        return self.kubernetes().kubeconfig()

    def kubernetes(self) -> Kubernetes:
        """Give the cluster, which takes over what an agent before this one started."""
        if self._kubernetes is None:
            from arcbox_agent.kubernetes import Kubernetes

            self._kubernetes = Kubernetes(self.runtime(), self._watch, self._cgroups)
        return self._kubernetes

    async def Shutdown(self, request: agent_pb2.ShutdownRequest) -> agent_pb2.ShutdownResponse:
        """Acknowledge, then shut down. Asked again while at it, only acknowledge."""
        self.begin_shutdown(request.timeout_seconds)
        return agent_pb2.ShutdownResponse(accepted=True)

    def begin_shutdown(self, grace_s: float, *, restart: bool = False) -> None:
        """Start the shutdown; an answer can leave first. A grace of 0 is the usual one.

        With `restart` the machine begins anew; only for one whose init is our own.
        """
        self._clone.begin()
        if self._shutdown is None or self._shutdown.done():
            self._shutdown = aio.spawn(self._shut_down(grace_s, restart=restart), name="shutdown")

    async def finish(self) -> None:
        """See that containers do not keep init from going down, if that is why the agent ends."""
        if self._runtime is not None:
            from arcbox_agent.runtime_end import end_with_init

            await end_with_init(self._cgroups.hierarchy)

    async def _shut_down(self, grace_s: float, *, restart: bool) -> None:
        """Stop pods and containers in order, which init knows nothing of, then everything."""
        if self._runtime is not None:
            from arcbox_agent.kubernetes_layout import Layout
            from arcbox_agent.shutdown import DEFAULT_GRACE_S

            began = time.monotonic()
            grace_s = grace_s or DEFAULT_GRACE_S
            try:
                if files.read(Layout(self._runtime.layout).record):
                    await self.kubernetes().shut_down()
                await self._runtime.shut_down(min(_CONTAINERS_S, grace_s / 2))
            except Exception:  # noqa: BLE001  the machine must go down whatever happens
                _log.exception("the containers could not be stopped in order")
            grace_s = max(_LEAST_GRACE_S, grace_s - (time.monotonic() - began))
        await self._kernel.shut_down(grace_s, restart=restart)

    async def DiskTrim(self, _request: agent_pb2.DiskTrimRequest) -> agent_pb2.DiskTrimResponse:
        """Trim every data filesystem."""
        from arcbox_agent import trim

        return agent_pb2.DiskTrimResponse(result=await trim.trim_all())
