"""Makes the link to a machine's agent."""

from __future__ import annotations

from pathlib import Path

from arcboxd.domain.guest import Identity
from arcboxd.domain.machine import Machine
from arcboxd.guest.agent import LinkedAgent
from arcboxd.paths import Paths


class LinkConnector:
    """Implements `arcboxd.machines.interfaces.AgentConnector`."""

    def __init__(self, paths: Paths, *, timeout_scale: float) -> None:
        """Serve each machine's ``agent.sock`` in its directory.

        Args:
            paths: The state directory.
            timeout_scale: The accelerator's; deadlines of calls are multiplied by it.
        """
        self._paths = paths
        self._scale = timeout_scale

    async def connect(self, machine: Machine, link_socket: Path, identity: Identity) -> LinkedAgent:
        """Begin to hold a session; gives ``identity`` to the agent at the start of each session.

        Raises:
            LinkError: ``agent.sock`` cannot be made.
        """
        agent = LinkedAgent(
            machine.spec.name,
            link_socket,
            self._paths.machine(machine.id).agent_socket,
            identity,
            timeout_scale=self._scale,
        )
        await agent.open()
        return agent
