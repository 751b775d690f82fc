"""AgentService: the part of the published contract that the guest serves."""

# Imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NoReturn

from arcbox_agent import VERSION
from arcboxd import aio
from arcboxd.errors import UnsupportedError
from arcboxd.wire.pb.arcbox.v1 import agent_pb2

if TYPE_CHECKING:
    import asyncio

    from arcbox_agent.clone import Clone
    from arcbox_agent.kernel import Kernel
    from arcboxd.wire.pb.arcbox.v1 import common_pb2

_CLOCK_TOLERANCE_S = 1
_MAX_UNIX_S = 1 << 33  # the year 2242: beyond it nobody is serious

_log = logging.getLogger(__name__)


class AgentService:
    """Serves arcbox.v1.AgentService, one method an RPC. See agent.proto for what each means."""

    def __init__(self, kernel: Kernel, clone: Clone, root: str) -> None:
        """Serve for the system whose files lie below `root`."""
        self._kernel = kernel
        self._clone = clone
        self._root = root
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

    async def EnsureRuntime(self, _request: agent_pb2.RuntimeEnsureRequest) -> NoReturn:
        """Refuse: not in this version."""
        raise _unsupported("container runtime")

    async def GetRuntimeStatus(self, _request: agent_pb2.RuntimeStatusRequest) -> NoReturn:
        """Refuse: not in this version."""
        raise _unsupported("container runtime")

    async def StartKubernetes(self, _request: agent_pb2.KubernetesStartRequest) -> NoReturn:
        """Refuse: not in this version."""
        raise _unsupported("Kubernetes cluster")

    async def StopKubernetes(self, _request: agent_pb2.KubernetesStopRequest) -> NoReturn:
        """Refuse: not in this version."""
        raise _unsupported("Kubernetes cluster")

    async def DeleteKubernetes(self, _request: agent_pb2.KubernetesDeleteRequest) -> NoReturn:
        """Refuse: not in this version."""
        raise _unsupported("Kubernetes cluster")

    async def GetKubernetesStatus(self, _request: agent_pb2.KubernetesStatusRequest) -> NoReturn:
        """Refuse: not in this version."""
        raise _unsupported("Kubernetes cluster")

    async def GetKubeconfig(self, _request: agent_pb2.KubernetesKubeconfigRequest) -> NoReturn:
        """Refuse: not in this version."""
        raise _unsupported("Kubernetes cluster")

    async def Shutdown(self, request: agent_pb2.ShutdownRequest) -> agent_pb2.ShutdownResponse:
        """Acknowledge, then shut down. Asked again while at it, only acknowledge."""
        self.begin_shutdown(request.timeout_seconds)
        return agent_pb2.ShutdownResponse(accepted=True)

    def begin_shutdown(self, grace_s: float) -> None:
        """Start the shutdown; an answer can leave first. A grace of 0 is the usual one."""
        self._clone.begin()
        if self._shutdown is None or self._shutdown.done():
            self._shutdown = aio.spawn(self._kernel.shut_down(grace_s), name="shutdown")

    async def DiskTrim(self, _request: agent_pb2.DiskTrimRequest) -> agent_pb2.DiskTrimResponse:
        """Trim every data filesystem."""
        from arcbox_agent import trim

        return agent_pb2.DiskTrimResponse(result=await trim.trim_all())


def _unsupported(what: str) -> UnsupportedError:
    return UnsupportedError(f"This version of the agent cannot run a {what}.")
