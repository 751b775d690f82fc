"""What the groups of an agent's calls have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

from google.protobuf.message import Message

_M = TypeVar("_M", bound=Message)

AGENT = "/arcbox.v1.AgentService/"
GUEST = "/arcbox.ext.v1.GuestService/"


class AgentCalls(ABC):
    """A part of `arcboxd.guest.agent.LinkedAgent`."""

    @abstractmethod
    async def _session(self) -> None:
        """Wait for a moment if there is no session."""

    @abstractmethod
    async def _call(
        self,
        path: str,
        request: Message,
        response: type[_M],
        *,
        timeout_s: float | None = None,
    ) -> _M:
        """Make one call, in a session that there is."""
