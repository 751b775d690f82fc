"""Docker's API of each machine as a unix socket of the host's: there before the machine runs.

The first connection starts the machine and its runtime. Each later one is a stream of the link to
the guest's own socket, and bytes from then on: what they mean is for both ends to know.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial

from arcboxd import aio
from arcboxd.docker.refusal import refuse
from arcboxd.domain.machine import Machine, MachineState
from arcboxd.errors import ArcboxError, LinkError, NoRoomError, PreconditionError
from arcboxd.link.pump import pump
from arcboxd.link.stream import Stream
from arcboxd.listener import Listener
from arcboxd.machines import runtime
from arcboxd.machines.context import Context
from arcboxd.machines.events import Progress, Subscription

_log = logging.getLogger(__name__)

TARGET = "unix:/var/run/docker.sock"
"""The guest's own socket, as the agent knows it."""
MAX_CONNECTIONS = 768
"""To one machine at a time: its link has 1024 streams, and others need some."""
_MAX_TASKS = 4096
"""Connections to all machines, those that are being refused among them."""
_REMEMBER_S = 2.0
"""How long a failure is told again: docker asks three times before it says what it was told."""

_UNSERVED = frozenset({MachineState.CREATING, MachineState.REMOVING})


class DockerSockets:
    """Serves ``machines/ID/docker.sock`` of every machine and ``run/docker.sock``."""

    def __init__(self, ctx: Context) -> None:
        """Serve nothing yet; `open` does."""
        self._ctx = ctx
        self._listeners: dict[str, Listener] = {}
        self._default = Listener(ctx.paths.docker_socket, partial(self._accept, ""))
        self._tasks: set[asyncio.Task[None]] = set()
        self._connected: Counter[str] = Counter()
        self._failures: dict[str, tuple[float, ArcboxError]] = {}
        self._stack = ExitStack()
        self._follower: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Serve the machines that there are, from now on those that come, and the default one."""
        events = self._stack.enter_context(self._ctx.events.subscribe())
        self._follower = aio.spawn(self._follow(events), name="docker sockets")
        self._serve_recorded()
        try:
            self._default.open()
        except OSError as error:
            _log.error("cannot serve %s: %s", self._ctx.paths.docker_socket, error)

    async def close(self) -> None:
        """Serve nobody any more, and cut who is connected. Idempotent."""
        self._stack.close()
        if self._follower is not None:
            await aio.cancel(self._follower)
        for listener in (self._default, *self._listeners.values()):
            listener.close(unlink=True)
        self._listeners.clear()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, events: Subscription) -> None:
        async for event in events:
            if not isinstance(event.what, Progress):
                self._serve_recorded()

    def _serve_recorded(self) -> None:
        machines = {m.id: m for m in self._ctx.registry.all() if m.state not in _UNSERVED}
        for machine_id in self._listeners.keys() - machines.keys():
            # Its file goes with the machine's directory, which another removes right now.
            self._listeners.pop(machine_id).close(unlink=False)
        for machine_id in machines.keys() - self._listeners.keys():
            self._serve_machine(machines[machine_id])

    def _serve_machine(self, machine: Machine) -> None:
        path = self._ctx.paths.machine(machine.id).docker_socket
        listener = Listener(path, partial(self._accept, machine.id))
        try:
            listener.open()
        except OSError as error:
            _log.error("cannot serve %s: %s", path, error)
            return
        self._listeners[machine.id] = listener

    # --- one connection -------------------------------------------------------------------------

    def _accept(self, machine_id: str, sock: socket.socket) -> None:
        if len(self._tasks) >= _MAX_TASKS:
            sock.close()
            return
        task = aio.spawn(self._serve(machine_id, sock), name=f"docker client of {machine_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, machine_id: str, sock: socket.socket) -> None:
        with closing(sock), ExitStack() as slot:
            try:
                machine_id = machine_id or (await runtime.ensure_default(self._ctx)).id
                slot.enter_context(self._slot(machine_id))
                stream = await self._stream(machine_id)
            except ArcboxError as error:
                await refuse(sock, error)
            except Exception:  # noqa: BLE001
                _log.exception("a connection to Docker of machine %s failed", machine_id)
                await refuse(sock, ArcboxError("the daemon failed", hint="its log says why"))
            else:
                await pump(stream, sock)

    @contextmanager
    def _slot(self, machine_id: str) -> Iterator[None]:
        if self._connected[machine_id] >= MAX_CONNECTIONS:
            raise NoRoomError(f"{MAX_CONNECTIONS} connections to this machine's Docker are open")
        self._connected[machine_id] += 1
        try:
            yield
        finally:
            self._connected[machine_id] -= 1
            if not self._connected[machine_id]:
                del self._connected[machine_id]

    async def _stream(self, machine_id: str) -> Stream:
        """Open a stream to the guest's Docker, at once if that answers, else once it does.

        Raises:
            ArcboxError: It cannot be had; says why.
        """
        if (running := self._ctx.running.get(machine_id)) is not None:
            with suppress(LinkError):
                return await running.agent.open_stream(TARGET)
        await self._ensure(machine_id)
        _, running = await self._ctx.running_machine(machine_id, "reach Docker in")
        return await running.agent.open_stream(TARGET)

    async def _ensure(self, machine_id: str) -> None:
        now = asyncio.get_running_loop().time
        if (failure := self._failures.get(machine_id)) is not None and now() < failure[0]:
            raise failure[1]
        try:
            answer = await runtime.ensure(self._ctx, machine_id, start_if_needed=True)
            if not answer.ready:
                raise PreconditionError(f"Docker is not ready: {answer.message}")
        except ArcboxError as error:
            self._failures[machine_id] = (now() + _REMEMBER_S, error)
            raise
        self._failures.pop(machine_id, None)
