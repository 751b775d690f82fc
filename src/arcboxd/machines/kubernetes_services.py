"""The Services of a machine's cluster on the host: each node port is one of the host's, too."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import aclosing

from arcboxd import aio
from arcboxd.domain.machine import Machine
from arcboxd.errors import ArcboxError, CorruptError, PreconditionError, UnsupportedError
from arcboxd.kubernetes.kubeconfig import credentials
from arcboxd.kubernetes.service_objects import ListAnewError, Service
from arcboxd.kubernetes.services import ServiceClient
from arcboxd.machines import kubernetes_port
from arcboxd.machines.context import Context, Running
from arcboxd.ports.forwards import MAX_FORWARDS
from arcboxd.ports.plan import LOOPBACK, Wanted

_log = logging.getLogger(__name__)

_ANSWER_S = 15.0
"""Under kvm: for the API server to answer a request."""
_RETRY_FIRST_S = 0.5
_RETRY_MOST_S = 10.0
_SETTLE_S = 5.0
_TEXT_MAX = 300


def begin(ctx: Context, machine: Machine, running: Running) -> None:
    """Have the node ports of a machine's cluster open on the host, from now on. Idempotent.

    It goes on, whatever becomes of the cluster, until `end`, or until the machine runs no more.
    """
    if ctx.running.get(machine.id) is not running:
        return  # it has ended meanwhile, and nobody would end this
    following = ctx.service_ports.get(machine.id)
    if following is None:
        following = ctx.service_ports[machine.id] = ServicePorts(ctx, machine, running)
    following.start()


async def end(ctx: Context, machine_id: str) -> None:
    """Close the node ports of a machine: its cluster was stopped or deleted. Idempotent."""
    if (following := ctx.service_ports.get(machine_id)) is not None:
        await following.stop()


async def leave(ctx: Context, machine_id: str) -> None:
    """Let go of a machine that runs no more, or not for this daemon. Idempotent.

    What is open is left to the forwards' own end: the next daemon finds it.
    """
    if (following := ctx.service_ports.pop(machine_id, None)) is not None:
        await following.leave()


class ServicePorts:
    """Follows the Services of one machine's cluster, while its process runs."""

    def __init__(self, ctx: Context, machine: Machine, running: Running) -> None:
        """Follow nothing yet."""
        self._ctx = ctx
        self._machine = machine
        self._running = running
        self._forwards = ctx.ports.of(machine.id, machine.spec.name)
        self._published: set[str] = set()
        """The owners of forwards."""
        self._task: asyncio.Task[None] | None = None
        self._told = ""
        running.agent.on_session(self._again)

    def start(self) -> None:
        """Begin to follow. Idempotent."""
        if self._task is None or self._task.done():
            self._task = self._spawn(None)

    async def stop(self) -> None:
        """Follow no more, and close all that is open. Idempotent."""
        if self._task is not None:
            self._task.cancel()
        self._reconcile(())
        await self.leave()

    async def leave(self) -> None:
        """Follow no more. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            await aio.cancel(task)

    def _again(self) -> None:
        """List anew: a guest that began anew does not end the connections that it had."""
        if (task := self._task) is not None:
            task.cancel()
            self._task = self._spawn(task)

    def _spawn(self, former: asyncio.Task[None] | None) -> asyncio.Task[None]:
        return aio.spawn(self._follow(former), name=f"services of {self._machine.spec.name}")

    async def _follow(self, former: asyncio.Task[None] | None) -> None:
        if former is not None:
            await aio.cancel(former)
        now_s = asyncio.get_running_loop().time
        delay_s = _RETRY_FIRST_S
        while True:
            began_s = now_s()
            try:
                await self._session()
            except UnsupportedError:
                return
            except (ListAnewError, ArcboxError) as error:
                self._note(error)
            if now_s() - began_s >= _RETRY_MOST_S:
                delay_s = _RETRY_FIRST_S  # it was followed for a while
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _RETRY_MOST_S)

    async def _session(self) -> None:
        """List, and watch until that is no longer possible.

        Raises:
            ListAnewError: As it usually ends.
            ArcboxError: The agent has no credentials, or what it or the cluster says is nonsense.
        """
        # Each time: it may be another cluster, which has other keys.
        found = credentials(await self._running.agent.kubeconfig())
        if not (port := kubernetes_port.find(self._ctx, self._machine.id)):
            raise PreconditionError("the cluster has no port of the host")
        server = f"https://{LOOPBACK}:{port}"
        timeout_s = self._ctx.scaled(_ANSWER_S, self._machine)
        async with ServiceClient(server, found, timeout_s=timeout_s) as client:
            services, version = await client.services()
            self._told = ""
            self._reconcile(services)
            await self._forwards.settled(_SETTLE_S)
            while True:
                async with aclosing(client.watch(version)) as changes:
                    async for change in changes:
                        version = change.version or version
                        if change.service is not None and self._take(change.service):
                            # What comes next waits: it cannot be more than can be done.
                            await self._forwards.settled(_SETTLE_S)
                await asyncio.sleep(_RETRY_FIRST_S)

    def _reconcile(self, services: Iterable[Service]) -> None:
        """Have open what these Services have, and nothing else."""
        there = {_owner(service): service for service in services if service.ports}
        for owner in self._published - there.keys():
            self._withdraw(owner)
        for service in there.values():
            self._take(service)

    def _take(self, service: Service) -> bool:
        """Do as a Service is now; tell whether there was anything to do."""
        owner = _owner(service)
        if not service.ports:
            return self._withdraw(owner)
        if owner not in self._published and len(self._published) >= MAX_FORWARDS:
            return False
        self._published.add(owner)
        address = self._ctx.settings.published_address
        # At the guest's own address: kube-proxy need not serve node ports at the loopback one.
        wanted = [Wanted(p.protocol, address, p.port, "", p.port) for p in service.ports]
        source = f"service:{service.namespace}/{service.name}"
        self._forwards.publish(owner, source, wanted)
        return True

    def _withdraw(self, owner: str) -> bool:
        if owner not in self._published:
            return False
        self._published.discard(owner)
        self._forwards.withdraw(owner)
        return True

    def _note(self, error: Exception) -> None:
        """Say what is wrong: loudly, and once, if it is more than a server that is away."""
        text = str(error)[:_TEXT_MAX]
        level = logging.DEBUG
        if isinstance(error, CorruptError) and text != self._told:
            level, self._told = logging.WARNING, text
        _log.log(level, "the services of %s are not followed: %s", self._machine.spec.name, text)


def _owner(service: Service) -> str:
    return f"{kubernetes_port.OWNER}/{service.namespace}/{service.name}"
