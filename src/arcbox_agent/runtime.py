"""The container runtime: brings containerd and dockerd up, says how they are, and takes them down.

The bundle is a disk that the host plugs in when it is first asked for. A guest that has a Docker
engine of its own uses that one.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from arcbox_agent import runtime_config as config
from arcbox_agent.runtime_health import Doctor, Health, describe_failure
from arcbox_agent.runtime_system import prepare_files
from arcboxd.errors import ArcboxError
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from arcbox_agent.runtime_system import RuntimeSystem
    from arcbox_agent.service_unit import Unit
    from arcbox_agent.supervisor import Supervisor
    from arcbox_agent.watch import Watch

_DISK_S = 60.0
_START_S = 120.0
_POLL_S = 0.05
_MAX_DEATHS = 3
_LOG_LINES = 20

_log = logging.getLogger(__name__)


class RuntimeFailedError(ArcboxError):
    """A part of the runtime did not start."""


class Runtime:
    """containerd and dockerd of this machine."""

    def __init__(
        self,
        supervisor: Supervisor,
        system: RuntimeSystem,
        watch: Watch,
        *,
        user: Callable[[], str],
        root: str,
        hierarchy: str,
    ) -> None:
        """Take what it works with.

        Args:
            supervisor: Runs the daemons.
            system: The machine.
            watch: Who is told that the runtime is wanted.
            user: Names the machine's user, once that is known.
            root: Below which all files lie.
            hierarchy: A mount of the control groups; empty: there is none.
        """
        self.layout = config.Layout(root)
        self.supervisor = supervisor
        self.system = system
        self._watch = watch
        self._user = user
        self._doctor = Doctor(self.layout, supervisor, system)
        self._hierarchy = hierarchy
        self._work: asyncio.Future[str] | None = None

    async def ensure(self, *, start: bool) -> agent_pb2.RuntimeEnsureResponse:
        """See that Docker can be used, or only whether it can. Idempotent.

        However many call at once, the work is done once; a caller that gives up does not end it.

        Returns:
            ready; the endpoint; a message; and `started` if this call had to do something, `reused`
            if all was there, `failed` if it is not ready.
        """
        if self._work is None:
            health = await self._doctor.look()
            if health.ready:
                return _response(health, "reused")
            if not start:
                return _response(health, "failed")
        if start and self._work is None:
            self._work = asyncio.ensure_future(self._bring_up())
            self._work.add_done_callback(self._on_done)
        trouble = await asyncio.shield(self._work) if start and self._work is not None else ""
        health = await self._doctor.look()
        if health.ready:
            return _response(health, "started" if start else "reused")
        return _response(health, "failed", trouble)

    async def status(self) -> agent_pb2.RuntimeStatusResponse:
        """Say how each part is. Takes seconds when one hangs."""
        health = await self._doctor.look()
        return agent_pb2.RuntimeStatusResponse(
            containerd_ready=health.containerd.status == "ready",
            docker_ready=health.dockerd.status == "ready",
            endpoint=config.ENDPOINT,
            detail=health.describe(),
            services=health.parts,
        )

    async def shut_down(self, grace_s: float) -> None:
        """Stop containers and daemons in order, within the grace; nothing is started after that.

        See `runtime_end`. The distribution's own engine is left to its init.
        """
        from arcbox_agent.runtime_end import end_runtime  # noqa: PLC0415  once at most

        self.supervisor.freeze()
        if self._work is not None:
            self._work.cancel()
        if self.supervisor.find("dockerd") or self.supervisor.find("containerd"):
            await end_runtime(self.supervisor, self.layout, self._hierarchy, grace_s)

    # Starting

    def _on_done(self, work: asyncio.Future[str]) -> None:
        self._work = None
        if not work.cancelled() and (error := work.exception()) is not None:
            _log.error("the runtime could not be brought up", exc_info=error)

    async def _bring_up(self) -> str:
        """Start what is missing; return why it is not ready, or nothing."""
        try:
            if self.supervisor.find("dockerd") is None and await self._start_own():
                return ""
            await self._start_bundle()
        except (ArcboxError, OSError) as error:
            hint = f" {error.hint}" if isinstance(error, ArcboxError) and error.hint else ""
            _log.warning("the container runtime did not start: %s", error)
            return f"{error}{hint}"
        finally:
            self._watch.docker_changed.set()
        return ""

    async def _start_own(self) -> bool:
        """Start the distribution's own engine; say whether it has one that works."""
        trouble = await self.system.start_own_docker()
        if trouble is None:
            return False
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_S / 4
        while not trouble:
            if await self._doctor.docker_pid() is not None:
                return True
            if loop.time() > deadline:
                trouble = "it does not answer"
            await asyncio.sleep(_POLL_S)
        _log.warning("the distribution's Docker engine is of no use, ours is taken: %s", trouble)
        return False

    async def _start_bundle(self) -> None:
        """Start both daemons, the second while the first begins: it needs it only after a while.

        (T) Most of what either takes is its own program's start.
        """
        await self._find_bundle()
        await self.system.wait_for_root()
        prepare_files(self.layout.root, self._user())
        config.write_docker_config(self.layout)
        modprobe = f"{self.layout.bin}/modprobe"
        self.system.prepare(modprobe)
        preparing = asyncio.ensure_future(self._prepare_for_docker(modprobe))
        try:
            containerd = await self._begin_containerd()
            await preparing
            dockerd = self.supervisor.start(config.dockerd_service(self.layout))
            if containerd is not None:
                await self._wait_for(containerd, self._doctor.containerd_serves)
            await self._wait_for(dockerd, self._docker_answers)
        finally:
            preparing.cancel()

    async def _find_bundle(self) -> None:
        """Mount the bundle's disk, which the host may have to plug in first, or even to build."""
        await self._watch.wait_for_disk(
            guest_pb2.GuestEvent(runtime_wanted=guest_pb2.RuntimeWanted()),
            lambda: (
                self.layout.has_bundle or self.system.mount_bundle("runtime", self.layout.bundle)
            ),
            content="the container runtime",
            timeout_s=_DISK_S,
        )

    async def _prepare_for_docker(self, modprobe: str) -> None:
        """Load modules, and wait until the system is set up, side by side."""
        await asyncio.gather(self.system.load_modules(modprobe), self.system.wait_booted())

    async def _begin_containerd(self) -> Unit | None:
        """Start containerd; None when the distribution's own serves: the two would fight."""
        if self.supervisor.find("containerd") is None and await self._doctor.containerd_serves():
            return None
        config.write_containerd_config(self.layout)
        return self.supervisor.start(config.containerd_service(self.layout))

    async def _docker_answers(self) -> bool:
        return await self._doctor.docker_pid() is not None and await self._doctor.have_met()

    async def _wait_for(self, unit: Unit, answers: Callable[[], Awaitable[bool]]) -> None:
        """Wait until a daemon that was started answers."""
        name, deaths = unit.service.name, unit.deaths
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not await answers():
            if unit.deaths - deaths >= _MAX_DEATHS:
                trouble = describe_failure(unit, _LOG_LINES)
                raise RuntimeFailedError(f"{name} does not start: it {trouble}")
            if loop.time() - began > _START_S:
                trouble = describe_failure(unit, _LOG_LINES)
                raise RuntimeFailedError(f"{name} does not answer after {_START_S:g} s: {trouble}")
            await asyncio.sleep(_POLL_S)
        _log.info("%s answered after %.2f s", name, loop.time() - began)


def _response(health: Health, status: str, trouble: str = "") -> agent_pb2.RuntimeEnsureResponse:
    return agent_pb2.RuntimeEnsureResponse(
        ready=health.ready,
        endpoint=config.ENDPOINT,
        message=trouble or health.describe(),
        status=status,
    )
