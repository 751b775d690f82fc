"""A client for dockerd's API: HTTP/1.1 over its unix socket, a connection a request.

Source: RFC 9112; docs.docker.com/reference/api/engine (v1.45).
"""

# Imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415

from __future__ import annotations

import asyncio
import socket as sockets
import struct
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from arcboxd.errors import ArcboxError, ErrorKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_MAX_HEADERS = 100
_MAX_BODY_BYTES = 8 * 1024 * 1024
_MAX_LINE_BYTES = 1024 * 1024
_READ_BYTES = 64 * 1024
_PEER = struct.Struct("3i")
_OK, _NOT_FOUND = 200, 404


class DockerError(ArcboxError):
    """Docker's daemon cannot be reached, or refused."""

    kind = ErrorKind.UNREACHABLE


class NoSuchContainerError(DockerError):
    """Docker's daemon knows nothing of that name."""

    kind = ErrorKind.NOT_FOUND


class Docker:
    """Docker's daemon behind a socket."""

    def __init__(self, socket: str) -> None:
        """Ask at this socket, which need not exist yet."""
        self._socket = socket

    async def ping(self, timeout_s: float) -> int | None:
        """Ask whether it is ready; return the pid of who listens, None when it is not ready.

        The pid is that of who began to listen: 1 for a socket that systemd holds.
        """
        try:
            async with asyncio.timeout(timeout_s), self._send("GET", "/_ping") as reply:
                if reply.status != _OK:
                    return None
                async for _ in reply.body():
                    pass
                return reply.peer
        except (TimeoutError, DockerError):
            return None

    async def get(self, path: str, timeout_s: float) -> object:
        """Get an object.

        Raises:
            NoSuchContainerError: There is no such object.
            DockerError: There was no answer in time, or it is not one.
        """
        return await self._request("GET", path, timeout_s)

    async def post(self, path: str, timeout_s: float) -> object:
        """Do something to an object.

        Raises:
            NoSuchContainerError: There is no such object.
            DockerError: There was no answer in time, or it is not one.
        """
        return await self._request("POST", path, timeout_s)

    async def _request(self, method: str, path: str, timeout_s: float) -> object:
        import json

        data = bytearray()
        try:
            async with asyncio.timeout(timeout_s), self._send(method, path) as reply:
                async for piece in reply.body():
                    data += piece
                    if len(data) > _MAX_BODY_BYTES:
                        raise DockerError(f"Docker's answer to {path} is too long.")
                status = reply.status
        except TimeoutError:
            raise DockerError(f"Docker did not answer within {timeout_s:g} s.") from None
        try:
            content = json.loads(data) if data else None
        except ValueError as error:
            raise DockerError(f"Docker's answer to {path} is not JSON.") from error
        if status == _NOT_FOUND:
            raise NoSuchContainerError(f"Docker knows nothing of {path}.")
        if not _OK <= status < _OK + 100:
            reason = content.get("message") if isinstance(content, dict) else None
            raise DockerError(f"Docker refused {path}: {reason or status}.")
        return content

    @asynccontextmanager
    async def events(
        self, filters: dict[str, list[str]], timeout_s: float
    ) -> AsyncIterator[AsyncIterator[dict[str, object]]]:
        """Follow events for as long as the context lasts; they end when dockerd does.

        Args:
            filters: As in the API.
            timeout_s: For dockerd to begin.

        Raises:
            DockerError: There was no answer in time, or it is not one.
        """
        import json
        from urllib.parse import quote

        path = "/events?filters=" + quote(json.dumps(filters))
        async with AsyncExitStack() as connection:
            try:
                async with asyncio.timeout(timeout_s):
                    reply = await connection.enter_async_context(self._send("GET", path))
            except TimeoutError:
                raise DockerError(f"Docker did not answer within {timeout_s:g} s.") from None
            if reply.status != _OK:
                raise DockerError(f"Docker refused to tell its events: {reply.status}.")
            yield _objects(reply)

    @asynccontextmanager
    async def _send(self, method: str, path: str) -> AsyncIterator[_Reply]:
        """Send a request, and give its answer once the headers are there."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
        except OSError as error:
            raise DockerError(f"Nothing answers at {self._socket}: {error.strerror}.") from error
        try:
            length = "Content-Length: 0\r\n" if method == "POST" else ""
            head = f"{method} {path} HTTP/1.1\r\nHost: docker\r\n{length}Connection: close\r\n\r\n"
            writer.write(head.encode())
            reply = _Reply(reader, _peer(writer))
            await reply.read_headers()
            yield reply
        finally:
            writer.transport.abort()


class _Reply:
    """An answer whose body is read as it comes."""

    def __init__(self, reader: asyncio.StreamReader, peer: int) -> None:
        self.status = 0
        self.peer = peer
        self._reader = reader
        self._headers: dict[str, str] = {}

    async def read_headers(self) -> None:
        """Read status and headers."""
        status = (await self._line()).split(" ", 2)
        self.status = _number(status[1] if len(status) > 1 else "", 10)
        for _ in range(_MAX_HEADERS):
            name, _, value = (await self._line()).partition(":")
            if not name:
                return
            self._headers[name.lower()] = value.strip().lower()
        raise DockerError("Docker's answer makes no sense.")

    async def body(self) -> AsyncIterator[bytes]:
        """Give the body's pieces, without their framing."""
        if self._headers.get("transfer-encoding") == "chunked":
            while size := _number((await self._line()).split(";")[0], 16):
                async for piece in self._exactly(size):
                    yield piece
                await self._line()
        elif "content-length" in self._headers:
            async for piece in self._exactly(_number(self._headers["content-length"], 10)):
                yield piece
        else:
            while piece := await self._read(_READ_BYTES):
                yield piece

    async def _exactly(self, size: int) -> AsyncIterator[bytes]:
        while size > 0:
            piece = await self._read(min(size, _READ_BYTES))
            if not piece:
                raise DockerError("Docker broke off its answer.")
            size -= len(piece)
            yield piece

    async def _read(self, size: int) -> bytes:
        try:
            return await self._reader.read(size)
        except OSError as error:
            raise DockerError(f"Docker broke off its answer: {error}.") from error

    async def _line(self) -> str:
        try:
            line = await self._reader.readline()
        except (OSError, ValueError) as error:  # ValueError: longer than the reader takes
            raise DockerError(f"Docker broke off its answer: {error}.") from error
        if not line.endswith(b"\n"):
            raise DockerError("Docker broke off its answer.")
        return line.decode("latin-1").rstrip("\r\n")


def _number(text: str, base: int) -> int:
    try:
        return int(text, base)
    except ValueError:
        raise DockerError("Docker's answer makes no sense.") from None


async def _objects(reply: _Reply) -> AsyncIterator[dict[str, object]]:
    """Parse a body of JSON objects, a line each."""
    import json

    rest = b""
    async for piece in reply.body():
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            raise DockerError("An event of Docker's is too long.")
        for line in lines:
            try:
                event = json.loads(line) if line.strip() else None
            except ValueError as error:
                raise DockerError("An event of Docker's is not JSON.") from error
            if isinstance(event, dict):
                yield event


def _peer(writer: asyncio.StreamWriter) -> int:
    """Say which process began to listen. See unix(7), SO_PEERCRED."""
    socket = writer.get_extra_info("socket")
    data = socket.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, _PEER.size)
    pid: int = _PEER.unpack(data)[0]
    return pid
