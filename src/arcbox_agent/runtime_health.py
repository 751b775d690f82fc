"""How the container runtime is, asked anew each time."""

# pathlib is not imported: start-up takes long under emulation.
# ruff: noqa: ASYNC240, PTH110

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from arcbox_agent.child import DEFAULT_PATH
from arcbox_agent.containerd_health import is_serving
from arcbox_agent.docker_api import Docker, DockerError
from arcboxd.wire.pb.arcbox.v1 import agent_pb2

if TYPE_CHECKING:
    from arcbox_agent.runtime_config import Layout
    from arcbox_agent.runtime_system import RuntimeSystem
    from arcbox_agent.service_unit import Unit
    from arcbox_agent.supervisor import Supervisor

READY, NOT_READY, ERROR = "ready", "not_ready", "error"
_ANSWER_S = 2.5
_OWN_CONTAINERD = "/var/run/docker/containerd/containerd.sock"  # what dockerd starts by itself

Part = agent_pb2.ServiceStatus


class Health:
    """What was found in one look.

    Attributes:
        is_own: Docker is the distribution's, not the bundle's.
    """

    __slots__ = ("containerd", "dockerd", "is_own", "runc")

    def __init__(self, containerd: Part, dockerd: Part, runc: Part, *, is_own: bool) -> None:
        """Keep it."""
        self.containerd = containerd
        self.dockerd = dockerd
        self.runc = runc
        self.is_own = is_own

    @property
    def ready(self) -> bool:
        """Whether Docker can be used."""
        return self.dockerd.status == READY and (self.is_own or self.containerd.status == READY)

    @property
    def parts(self) -> list[Part]:
        """All of it."""
        return [self.containerd, self.dockerd, self.runc]

    def describe(self) -> str:
        """Say in a sentence how it is."""
        if self.ready:
            whose = "The distribution's own Docker engine" if self.is_own else "The Docker engine"
            return f"{whose} answers: {self.dockerd.detail}."
        troubles = [each for each in self.parts if each.status != READY]
        troubles.sort(key=lambda each: each.status != ERROR)
        return "; ".join(f"{each.name}: {each.detail}" for each in troubles[:2]) + "."


class Doctor:
    """Looks at the runtime."""

    def __init__(self, layout: Layout, supervisor: Supervisor, system: RuntimeSystem) -> None:
        """Look at these."""
        self._layout = layout
        self._supervisor = supervisor
        self._system = system
        self._docker = Docker(layout.docker_socket)
        self._runc: tuple[str, Part] | None = None  # by the program's path
        self._own_versions: tuple[int, dict[str, str]] | None = None  # by the engine's pid
        self._met = (0, 0)  # the pids of a dockerd and of the later containerd that it has found

    async def look(self) -> Health:
        """Ask every part at once. Takes as long as the deadline when one hangs."""
        containerd, peer, runc = await asyncio.gather(
            self.containerd_serves(), self.docker_pid(), self._look_at_runc()
        )
        unit = self._supervisor.find("dockerd")
        is_own = peer is not None and (unit is None or peer != unit.pid)
        if is_own and peer is not None:
            return await self._look_at_own(peer, runc)
        versions = self._layout.versions()
        part = self._part("dockerd", peer is not None, versions, self._layout.docker_socket)
        if containerd and peer is not None and not await self.have_met():
            part = Part(
                name="dockerd", status=NOT_READY, detail="has not found the new containerd yet"
            )
        return Health(
            self._part("containerd", containerd, versions, self._layout.containerd_socket),
            part,
            runc,
            is_own=False,
        )

    async def have_met(self) -> bool:
        """Say whether dockerd has found a containerd that began after it.

        It looks every few seconds. Until then it answers, but neither starts nor ends containers,
        and does not hear of those that end.
        """
        containerd, dockerd = self._supervisor.find("containerd"), self._supervisor.find("dockerd")
        if containerd is None or dockerd is None or containerd.began < dockerd.began:
            return True
        pids = (dockerd.pid, containerd.pid)
        if self._met != pids and "containerd" in await self._ask_versions():
            self._met = pids
        return self._met == pids

    async def docker_pid(self) -> int | None:
        """Say which process answers at Docker's socket; None when none does in time."""
        return await self._docker.ping(_ANSWER_S)

    async def containerd_serves(self) -> bool:
        """Say whether containerd calls itself healthy in time."""
        return await is_serving(self._layout.containerd_socket, _ANSWER_S)

    def _part(self, name: str, ready: bool, versions: dict[str, str], socket: str) -> Part:  # noqa: FBT001
        unit = self._supervisor.find(name)
        version = versions.get(name, "")
        if ready:
            where = socket.removeprefix(self._layout.root)
            return Part(name=name, status=READY, detail=f"{version} at {where}".strip())
        if unit is None:
            return Part(name=name, status=NOT_READY, detail="not started")
        if unit.pid:
            return Part(name=name, status=NOT_READY, detail=_silence(unit))
        return Part(name=name, status=ERROR, detail=describe_failure(unit, 5))

    async def _look_at_runc(self) -> Part:
        folders = [self._layout.bin, *DEFAULT_PATH.split(":")]
        programs = (f"{folder}/runc" for folder in folders)
        path = next((each for each in programs if os.access(each, os.X_OK)), "")
        if not path:
            return Part(name="runc", status=NOT_READY, detail="not there")
        if self._runc is None or self._runc[0] != path:
            try:
                async with asyncio.timeout(_ANSWER_S * 4):
                    code, text = await self._system.run(path, "--version")
            except (OSError, TimeoutError) as error:
                return Part(name="runc", status=ERROR, detail=f"does not run: {error}")
            if code != 0:
                return Part(name="runc", status=ERROR, detail=f"does not run: {text.strip()[:300]}")
            version = text.split("\n", 1)[0].removeprefix("runc version ").strip()
            self._runc = path, Part(name="runc", status=READY, detail=f"{version} at {path}")
        return self._runc[1]

    async def _look_at_own(self, pid: int, runc: Part) -> Health:
        """Look at the distribution's own engine, which knows its parts' versions."""
        layout = self._layout
        if self._own_versions is None or self._own_versions[0] != pid:
            self._own_versions = pid, await self._ask_versions()
        versions = self._own_versions[1]
        containerd = Part(name="containerd", status=NOT_READY, detail="does not answer")
        for socket in (layout.containerd_socket, layout.root + _OWN_CONTAINERD):
            if os.path.exists(socket) and await is_serving(socket, _ANSWER_S):
                where = socket.removeprefix(layout.root)
                detail = f"{versions.get('containerd', '')} at {where}".strip()
                containerd = Part(name="containerd", status=READY, detail=detail)
                break
        dockerd = f"{versions.get('Engine', '')} at /var/run/docker.sock".strip()
        return Health(
            containerd, Part(name="dockerd", status=READY, detail=dockerd), runc, is_own=True
        )

    async def _ask_versions(self) -> dict[str, str]:
        try:
            answer = await self._docker.get("/version", _ANSWER_S)
        except DockerError:
            return {}
        components = answer.get("Components") if isinstance(answer, dict) else None
        return {
            str(each.get("Name")): str(each.get("Version"))
            for each in components or []
            if isinstance(each, dict)
        }


def describe_failure(unit: Unit, line_count: int) -> str:
    """Say how a service ended, with the last lines of its log."""
    from arcbox_agent.service_log import tail  # noqa: PLC0415  only when something failed

    lines = tail(unit.service.log, line_count)
    log = f"; the end of its log:\n{lines}" if lines else "; its log is empty"
    return (unit.failure or "has ended") + log


def _silence(unit: Unit) -> str:
    again = f", begun after the last one {unit.failure}" if unit.failure else ""
    return f"does not answer (process {unit.pid}{again})"
