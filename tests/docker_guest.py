"""A guest's end of a link, for what is behind its sockets: real frames, real sockets, no agent."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from arcbox_agent.kernel import NoKernel
from arcbox_agent.link import Targets
from arcboxd.errors import LinkError
from arcboxd.link.peer import Peer, Stream
from arcboxd.link.pump import pump

DOCKER = "unix:/var/run/docker.sock"


class LinkedGuest:
    """Two peers, joined by a pair of sockets; the guest's knows where its Docker socket leads."""

    def __init__(self, dockerd: Callable[[], Path | None]) -> None:
        self._dockerd = dockerd
        self.host = Peer(role="host")
        self.guest = Peer(role="guest", accept=self._accept)
        self.opened = 0
        self._joining = asyncio.Lock()

    async def join(self) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        await loop.create_unix_connection(lambda: self.guest.protocol, sock=theirs)
        await loop.create_unix_connection(lambda: self.host.protocol, sock=ours)
        await self.host.wait_session()

    async def open_stream(self, target: str) -> Stream:
        async with self._joining:
            if not self.host.is_up:
                await self.join()
        return await self.host.open(target)

    def close(self) -> None:
        self.host.close()
        self.guest.close()

    def _accept(self, target: str) -> Callable[[Stream], Awaitable[None]]:
        if target.startswith(("tcp:", "udp:")):
            return Targets({}, NoKernel()).accept(target)
        if target != DOCKER:
            raise LinkError(f"no target {target!r}")
        return self._connect

    async def _connect(self, stream: Stream) -> None:
        path = self._dockerd()
        if path is None:
            raise LinkError("connection refused")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            await asyncio.get_running_loop().sock_connect(sock, str(path))
        except OSError as error:
            sock.close()
            raise LinkError(str(error)) from error
        self.opened += 1
        stream.accept()
        await pump(stream, sock)
