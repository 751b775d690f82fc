"""What a guest tells of its published ports, to whoever watches it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from arcboxd.domain.ports import GuestEvent, PortBinding, PortsPublished, PortsWithdrawn, Synced
from arcboxd.errors import AgentUnreachableError


class PortGuest:
    """A guest's containers, and the ports that they publish."""

    def __init__(self) -> None:
        self.containers: dict[str, PortsPublished] = {}
        self.watched = 0
        self.silent = False
        """Nothing is told to new watchers, not even that this is all."""
        self._queues: set[asyncio.Queue[GuestEvent | None]] = set()

    def run(self, container_id: str, *bindings: PortBinding) -> None:
        """Run a container."""
        event = PortsPublished(container_id, f"container:{container_id}", bindings)
        self.containers[container_id] = event
        self.tell(event)

    def end(self, container_id: str) -> None:
        """Remove a container."""
        del self.containers[container_id]
        self.tell(PortsWithdrawn(container_id))

    def tell(self, event: GuestEvent | None) -> None:
        for queue in self._queues:
            queue.put_nowait(event)

    def lose(self) -> None:
        """End the session."""
        self.tell(None)

    async def watch(self) -> AsyncGenerator[GuestEvent, None]:
        self.watched += 1
        queue: asyncio.Queue[GuestEvent | None] = asyncio.Queue()
        self._queues.add(queue)
        try:
            if not self.silent:
                for event in tuple(self.containers.values()):
                    yield event
                yield Synced()
            while (told := await queue.get()) is not None:
                yield told
            raise AgentUnreachableError("the session ended")
        finally:
            self._queues.discard(queue)
