"""Makes the link to a machine's agent."""

from __future__ import annotations

from collections.abc import Callable

from arcboxd.domain.guest import Identity
from arcboxd.domain.machine import Machine
from arcboxd.guest.agent import LinkedAgent
from arcboxd.paths import MachinePaths


class LinkConnector:
    """Implements `arcboxd.machines.interfaces.AgentConnector`."""

    def __init__(self, scale_of: Callable[[str], float]) -> None:
        """Multiply the deadlines of calls by what this gives for a machine's architecture."""
        self._scale_of = scale_of

    async def connect(
        self,
        machine: Machine,
        paths: MachinePaths,
        identity: Identity | None,
        *,
        frozen: int = 0,
    ) -> LinkedAgent:
        """Begin to hold a session; gives ``identity``, if any, to the agent at each one's start.

        Args:
            machine: Whose agent it is.
            paths: Its files.
            identity: What the agent is told who it is; None to tell it nothing.
            frozen: The agent's `mark` when it was frozen, if it goes on from there.

        Raises:
            LinkError: ``agent.sock`` cannot be made.
        """
        agent = LinkedAgent(
            machine.spec.name,
            paths.link_socket,
            paths.agent_socket,
            identity,
            timeout_scale=self._scale_of(machine.spec.arch),
            frozen=frozen,
        )
        await agent.open()
        return agent
