"""The agent's calls about the container runtime."""

from __future__ import annotations

from arcboxd.domain.runtime import RuntimeAnswer, RuntimeStatus
from arcboxd.guest.calls import AGENT, AgentCalls
from arcboxd.wire import runtime
from arcboxd.wire.pb.arcbox.v1 import agent_pb2


class RuntimeCalls(AgentCalls):
    """A part of `arcboxd.guest.agent.LinkedAgent`."""

    async def ensure_runtime(self, *, start_if_needed: bool, timeout_s: float) -> RuntimeAnswer:
        """Have the container runtime ready, or only look."""
        await self._session()
        response = await self._call(
            AGENT + "EnsureRuntime",
            agent_pb2.RuntimeEnsureRequest(start_if_needed=start_if_needed),
            agent_pb2.RuntimeEnsureResponse,
            timeout_s=timeout_s,
        )
        return runtime.answer(response)

    async def runtime_status(self) -> RuntimeStatus:
        """Tell how the container runtime is."""
        await self._session()
        request = agent_pb2.RuntimeStatusRequest()
        return runtime.status(
            await self._call(AGENT + "GetRuntimeStatus", request, agent_pb2.RuntimeStatusResponse)
        )
