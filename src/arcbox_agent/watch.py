"""Watch: whom the agent tells what the daemon has to act on."""

# pathlib is not imported and imports come late: start-up takes long under emulation.
# ruff: noqa: ASYNC240, PLC0415, PTH110

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from arcboxd.errors import PreconditionError
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from arcbox_agent.calls import MessageStream

_LOOK_S = 2.0  # for a Docker that the agent did not start
_DISK_POLL_S = 0.1  # a disk that appears has no event that is cheaper than a look
_WATCHER_S = 30.0  # a daemon watches a while after its start, and tries again every 15 s


class Watch:
    """The watching daemon, if there is one.

    Attributes:
        docker_changed: To be set when Docker has just become ready: who waits for it looks at once.
    """

    def __init__(self) -> None:
        """Begin without a watcher."""
        self.docker_changed = asyncio.Event()
        self._watcher: _Watcher | None = None

    async def wait_for_disk(
        self,
        event: guest_pb2.GuestEvent,
        is_there: Callable[[], bool],
        *,
        content: str,
        timeout_s: float,
    ) -> None:
        """Wait for a disk that the daemon plugs in, and ask each daemon that watches for it.

        Args:
            event: What asks for it.
            is_there: Looks for it.
            content: What is on it, for errors.
            timeout_s: How long it may take.

        Raises:
            PreconditionError: It did not come in time, or nobody watches who could plug it in.
        """
        loop = asyncio.get_running_loop()
        began = watched = loop.time()
        asked: _Watcher | None = None
        while not is_there():
            now = loop.time()
            if (watcher := self._watcher) is not None:
                watched = now
                if watcher is not asked and await _tell(watcher, event):
                    asked = watcher
            elif now - watched > _WATCHER_S:
                raise PreconditionError(
                    f"The machine has no disk with {content}, and no daemon watches that could"
                    " plug it in.",
                    hint="Try again when the machine's daemon is connected.",
                )
            if now - began > timeout_s:
                raise PreconditionError(
                    f"The disk with {content} did not come within {timeout_s:g} s.",
                    hint="The daemon's log says why.",
                )
            await asyncio.sleep(_DISK_POLL_S)

    async def serve(
        self,
        stream: MessageStream[guest_pb2.WatchGuestRequest, guest_pb2.GuestEvent],
        socket: str,
    ) -> None:
        """Tell a daemon all there is and each change, until it gives up or another one watches.

        Args:
            stream: The call.
            socket: Docker's.
        """
        await stream.recv_message()
        if self._watcher is not None:
            self._watcher.end()
        watcher = self._watcher = _Watcher(stream)
        try:
            await watcher.run(self._follow(socket, watcher))
        finally:
            if self._watcher is watcher:
                self._watcher = None

    async def _follow(self, socket: str, watcher: _Watcher) -> None:
        """Follow Docker; what that takes is imported once there is one, which is never in most."""
        is_synced = not os.path.exists(socket)
        if is_synced:
            await watcher.send(guest_pb2.GuestEvent(synced=guest_pb2.Synced()))
        while not os.path.exists(socket):
            self.docker_changed.clear()
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self.docker_changed.wait()
            except TimeoutError:
                continue
        from arcbox_agent.published import follow

        await follow(socket, watcher.send, self.docker_changed, is_synced=is_synced)


class _Watcher:
    """One call of Watch."""

    def __init__(
        self, stream: MessageStream[guest_pb2.WatchGuestRequest, guest_pb2.GuestEvent]
    ) -> None:
        self._stream = stream
        self._sending = asyncio.Lock()
        self._replaced = asyncio.get_running_loop().create_future()

    async def send(self, event: guest_pb2.GuestEvent) -> None:
        async with self._sending:
            await self._stream.send_message(event)

    def end(self) -> None:
        if not self._replaced.done():
            self._replaced.set_result(None)

    async def run(self, following: Coroutine[object, object, None]) -> None:
        """Follow until that fails, the call is cancelled, or `end` is called."""
        task = asyncio.ensure_future(following)
        try:
            await asyncio.wait((task, self._replaced), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _tell(watcher: _Watcher, event: guest_pb2.GuestEvent) -> bool:
    try:
        await watcher.send(event)
    except Exception:  # noqa: BLE001  its own task sees the same, and ends
        return False
    return True
