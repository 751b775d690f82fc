"""Servers on loopback that do what a test tells them, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from arcboxd.images.web import Patience

QUICK = Patience(
    tries=4, backoff_s=0.001, pause_max_s=0.01, connect_s=10, stall_s=10, stall_bytes=64
)
"""No pauses, but a host that is busy is forgiven."""


@dataclass
class Request:
    """What a client asked."""

    path: str
    headers: dict[str, str]

    @property
    def start(self) -> int:
        """The first byte that is asked for."""
        given = self.headers.get("range", "bytes=0-")
        return int(given.removeprefix("bytes=").rstrip("-"))


class Reply:
    """The connection's writing end."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, status: str, *headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", *headers, "Connection: close", "", ""]
        await self.raw("\r\n".join(lines).encode())

    async def whole(self, body: bytes, *headers: str, status: str = "200 OK") -> None:
        await self.head(status, f"Content-Length: {len(body)}", *headers)
        await self.raw(body)

    async def part(self, body: bytes, start: int, *headers: str, end: int | None = None) -> None:
        """Send what a well-behaved server sends for a range; ``end`` cuts it off."""
        where = f"Content-Range: bytes {start}-{len(body) - 1}/{len(body)}"
        await self.head("206 Partial", where, f"Content-Length: {len(body) - start}", *headers)
        await self.raw(body[start:end])


Handler = Callable[[Request, Reply], Awaitable[None]]


@dataclass
class Server:
    """A server, and what it was asked."""

    url: str
    requests: list[Request] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.requests]


@contextlib.asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Serve on loopback; a handler that returns ends its connection."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                pairs = (line.split(": ", 1) for line in head[1:] if line)
                request = Request(head[0].split(" ")[1], {k.lower(): v for k, v in pairs})
                server.requests.append(request)
                await handler(request, Reply(writer))
        finally:
            writer.close()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listener = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    server = Server(f"{'https' if tls else 'http'}://127.0.0.1:{port}")
    try:
        yield server
    finally:
        listener.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def files(content: dict[str, bytes]) -> Handler:
    """Serve these, with ranges, and 404 for all else."""

    async def handler(request: Request, reply: Reply) -> None:
        body = content.get(request.path)
        if body is None:
            await reply.whole(b"no", status="404 Not Found")
        elif request.start:
            await reply.part(body, request.start)
        else:
            await reply.whole(body)

    return handler
