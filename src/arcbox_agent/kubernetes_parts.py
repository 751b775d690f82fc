"""The parts of a cluster, how each tells its health, and what both kinds have in common."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from arcbox_agent import runtime_config
from arcbox_agent.child import DEFAULT_PATH
from arcbox_agent.containerd_health import is_serving
from arcbox_agent.probe import probe
from arcbox_agent.runtime_health import ERROR, NOT_READY, READY, describe_failure
from arcboxd.wire.pb.arcbox.v1 import agent_pb2

if TYPE_CHECKING:
    from arcbox_agent.kubernetes_layout import Cluster, Layout
    from arcbox_agent.runtime_system import RuntimeSystem
    from arcbox_agent.supervisor import Supervisor

READY_URL = "https://127.0.0.1:6443/readyz"
_ANSWER_S = 4.0
_LOG_LINES = 5


class Part:
    """One part of a cluster.

    Attributes:
        name: What it is called.
        service: The service under supervision that it is, or is in.
        check: The address where it tells its health; or the path of a gRPC server's socket.
    """

    __slots__ = ("check", "name", "service")

    def __init__(self, name: str, service: str, check: str) -> None:
        """Keep these."""
        self.name = name
        self.service = service
        self.check = check


class Distribution(ABC):
    """One kind of Kubernetes: what it consists of, and how it is brought up.

    Attributes:
        name: As in the record of a cluster.
        parts: In the order of a status.
        api: The name of the part that is the API server.
        before_pods: The services that end before the pods do.
        after_pods: The others, in groups that end one after the other.
        holders: The services whose containers are left when they end.
        paths: All that a cluster leaves on the disk.
        foreign: Those of them that show a cluster which is not ours.
        kubeconfig: The administrator's.
    """

    name: str
    parts: tuple[Part, ...]
    api: str
    before_pods: tuple[str, ...]
    after_pods: tuple[tuple[str, ...], ...]
    holders: tuple[str, ...]
    paths: tuple[str, ...]
    foreign: tuple[str, ...]

    def __init__(self, layout: Layout, supervisor: Supervisor, system: RuntimeSystem) -> None:
        """Act on these."""
        self.layout = layout
        self.supervisor = supervisor
        self.system = system

    @property
    @abstractmethod
    def version(self) -> str:
        """The version of what the disk has; empty when the disk is not there."""

    @property
    @abstractmethod
    def kubeconfig(self) -> str:
        """The path of the administrator's kubeconfig."""

    @abstractmethod
    async def start(self, cluster: Cluster) -> None:
        """Start the API server and what it needs; for a new cluster, make its keys before.

        Idempotent.

        Raises:
            ArcboxError: A step failed.
            OSError: A file cannot be written.
        """

    @abstractmethod
    async def complete(self, cluster: Cluster) -> None:
        """Do what is due once the API server is ready. Idempotent.

        Raises:
            ArcboxError: A step failed.
        """

    @property
    def services(self) -> tuple[str, ...]:
        """Every service under supervision."""
        return (*self.before_pods, *(name for group in self.after_pods for name in group))

    @property
    def is_running(self) -> bool:
        """Whether the API server's process is there."""
        service = next(part.service for part in self.parts if part.name == self.api)
        unit = self.supervisor.find(service)
        return unit is not None and unit.pid != 0

    async def look(self) -> list[agent_pb2.ServiceStatus]:
        """Ask every part at once how it is. Takes seconds when one hangs."""
        return list(await asyncio.gather(*(self._look_at(part) for part in self.parts)))

    async def api_ready(self) -> bool:
        """Ask the API server whether it is ready."""
        return self.is_running and not await probe(READY_URL, _ANSWER_S)

    def environment(self) -> dict[str, str]:
        """Give what the programs need: the bundles' come before the distribution's."""
        found = runtime_config.environment(self.layout.runtime)
        found["PATH"] = f"{self.layout.bin}:{self.layout.runtime.bin}:{DEFAULT_PATH}"
        return found

    async def _look_at(self, part: Part) -> agent_pb2.ServiceStatus:
        unit = self.supervisor.find(part.service)
        if unit is None:
            status, detail = NOT_READY, "not started"
        elif not unit.pid:
            status, detail = ERROR, describe_failure(unit, _LOG_LINES)
        elif trouble := await self._ask(part):
            again = f"; the one before {unit.failure}" if unit.failure else ""
            status, detail = NOT_READY, f"process {unit.pid} is not ready: {trouble}{again}"
        else:
            status, detail = READY, f"{self.version}, process {unit.pid}"
        return agent_pb2.ServiceStatus(name=part.name, status=status, detail=detail)

    async def _ask(self, part: Part) -> str:
        if part.check.startswith("/"):
            serves = await is_serving(part.check, _ANSWER_S)
            return "" if serves else "it does not answer"
        return await probe(part.check, _ANSWER_S)
