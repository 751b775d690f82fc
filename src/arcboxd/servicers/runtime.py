"""HostService's calls about the container runtime."""

from __future__ import annotations

from arcboxd.machines.service import Machines
from arcboxd.servicers.translate import Context, unary
from arcboxd.wire import runtime
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2


class RuntimeCalls:
    """A part of `arcboxd.servicers.host.HostService`."""

    _machines: Machines

    @unary
    async def EnsureRuntime(
        self,
        request: host_pb2.EnsureMachineRuntimeRequest,
        context: Context[  # noqa: ARG002
            host_pb2.EnsureMachineRuntimeRequest, agent_pb2.RuntimeEnsureResponse
        ],
    ) -> agent_pb2.RuntimeEnsureResponse:
        answer = await self._machines.ensure_runtime(
            request.id, start_if_needed=request.start_if_needed
        )
        return runtime.answer_message(answer)

    @unary
    async def GetRuntimeStatus(
        self,
        request: host_pb2.MachineRuntimeStatusRequest,
        context: Context[  # noqa: ARG002
            host_pb2.MachineRuntimeStatusRequest, agent_pb2.RuntimeStatusResponse
        ],
    ) -> agent_pb2.RuntimeStatusResponse:
        return runtime.status_message(await self._machines.runtime_status(request.id))
