"""The agent's end of the link: finds the port, and serves what the host opens streams to."""

# pathlib is not imported: start-up takes long under emulation.
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from arcbox_agent import VERSION
from arcboxd.errors import LinkError
from arcboxd.link.guest_port import open_port
from arcboxd.link.peer import Peer
from arcboxd.link.proxy import proxy
from arcboxd.link.transport import StreamTransport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from arcbox_agent.rpc import Server
    from arcboxd.link.stream import Stream

PORT_NAME = "arcbox.agent.0"
_PORTS = "/sys/class/virtio-ports"
_PORT_WAIT_S = 30.0
_POLL_S = 0.02
_CONNECT_S = 10.0

_log = logging.getLogger(__name__)


async def serve(server: Server, port: str, ended: asyncio.Event) -> None:
    """Serve over the link until `ended` is set.

    Raises:
        LinkError: There is no port, or it failed.
    """
    path = port or await find_port(ended)
    if not path:
        return
    peer = Peer(role="guest", hello=VERSION.encode(), accept=Targets(server).accept)
    try:
        await open_port(path, lambda: peer.protocol)
    except OSError as error:
        raise LinkError(f"cannot open {path}: {error}") from error
    _log.info("version %s serves on %s", VERSION, path)
    stop = asyncio.ensure_future(ended.wait())
    lost = asyncio.ensure_future(peer.closed())
    await asyncio.wait((stop, lost), return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    lost.cancel()
    if not ended.is_set():
        raise LinkError(f"the port {path} was lost")
    peer.close()


async def find_port(ended: asyncio.Event) -> str:
    """Find the port by its name, waiting for its driver; empty when `ended` was set meanwhile.

    Raises:
        LinkError: There is none.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _PORT_WAIT_S
    while not ended.is_set():
        if device := _find_device():
            return f"/dev/{device}"
        if loop.time() > deadline:
            raise LinkError(f"the machine has no virtio-serial port {PORT_NAME}")
        await asyncio.sleep(_POLL_S)
    return ""


def _find_device() -> str | None:
    try:
        devices = os.listdir(_PORTS)
    except FileNotFoundError:  # the driver is not there yet
        return None
    for device in devices:
        try:
            with open(f"{_PORTS}/{device}/name", encoding="ascii") as file:
                if file.read().strip() == PORT_NAME:
                    return device
        except OSError:  # not named yet
            continue
    return None


class Targets:
    """What streams can be opened to: `grpc`, `ping`, `unix:PATH` and `tcp:HOST:PORT`."""

    def __init__(self, server: Server) -> None:
        """Answer `grpc` with this server."""
        self._server = server

    def accept(self, target: str) -> Callable[[Stream], Awaitable[None]]:
        """Return the handler for a target.

        Raises:
            LinkError: There is no such target.
        """
        kind, _, address = target.partition(":")
        host, _, port = address.rpartition(":")
        if target == "grpc":
            return self._grpc
        if target == "ping":
            return _pong
        if kind == "unix" and address.startswith("/"):
            return lambda stream: _connect(stream, asyncio.open_unix_connection(address))
        if kind == "tcp" and host and port.isascii() and port.isdigit() and int(port) < 1 << 16:
            # Names would be asked of name services, which the bundle does not have.
            host = "127.0.0.1" if host == "localhost" else host.strip("[]")
            return lambda stream: _connect(stream, asyncio.open_connection(host, int(port)))
        raise LinkError(f"the agent knows no target {target!r}")

    async def _grpc(self, stream: Stream) -> None:
        stream.accept()
        transport = StreamTransport(stream, self._server.protocol())
        try:
            await transport.wait_closed()
        finally:
            transport.abort()


async def _pong(stream: Stream) -> None:
    """Answer with the agent's version: a ping without the cost of HTTP/2."""
    stream.write_nowait(VERSION.encode())
    stream.finish()


async def _connect(
    stream: Stream,
    connecting: Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]],
) -> None:
    try:
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await connecting
    except (OSError, TimeoutError) as error:
        raise LinkError(f"cannot connect to {stream.target}: {error}") from error
    stream.accept()
    await proxy(stream, reader, writer)
