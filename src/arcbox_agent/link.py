"""The agent's end of the link: finds the port, and serves what the host opens streams to."""

# pathlib is not imported: start-up takes long under emulation.
# ruff: noqa: PLC0415, PTH123, PTH208

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import TYPE_CHECKING

from arcbox_agent import VERSION
from arcbox_agent.calls import Calls
from arcbox_agent.threads import in_thread
from arcboxd.errors import LinkError
from arcboxd.link.call import CALL
from arcboxd.link.guest_port import open_port
from arcboxd.link.peer import Peer
from arcboxd.link.pump import pump
from arcboxd.link.transport import StreamTransport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from arcbox_agent.calls import Method
    from arcbox_agent.kernel import Kernel
    from arcbox_agent.rpc import Server
    from arcboxd.link.stream import Stream

PORT_NAME = "arcbox.agent.0"
_PORTS = "/sys/class/virtio-ports"
_PORT_WAIT_S = 30.0
_POLL_S = 0.02
_CONNECT_S = 10.0
_TIME_BYTES = 8
_CLOCK_TOLERANCE_NS = 10_000_000

_log = logging.getLogger(__name__)


async def serve(
    served: dict[str, Method],
    kernel: Kernel,
    port: str,
    ended: asyncio.Event,
    on_hello: Callable[[bytes], None],
) -> None:
    """Serve over the link until `ended` is set; tell what the host says before each session.

    Raises:
        LinkError: There is no port, or it failed.
    """
    path = port or await find_port(ended)
    if not path:
        return
    peer = Peer(role="guest", hello=VERSION.encode(), accept=Targets(served, kernel).accept)
    peer.on_hello = on_hello
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
    """What streams can be opened to.

    They are `grpc`, `call:/SERVICE/METHOD`, `ping`, `clock`, `unix:PATH`, `tcp:HOST:PORT` and
    `udp:HOST:PORT`.
    """

    def __init__(self, served: dict[str, Method], kernel: Kernel) -> None:
        """Answer `grpc` and calls with these methods, and set this kernel's clock."""
        self._served = served
        self._calls = Calls(served)
        self._server: asyncio.Future[Server] | None = None
        self._kernel = kernel

    def accept(self, target: str) -> Callable[[Stream], Awaitable[None]]:
        """Return the handler for a target.

        Raises:
            LinkError: There is no such target.
        """
        kind, _, address = target.partition(":")
        host, _, port = address.rpartition(":")
        if target == "grpc":
            return self._grpc
        if target.startswith(CALL):
            return self._calls.accept(target.removeprefix(CALL))
        if target == "ping":
            return _pong
        if target == "clock":
            return self._clock
        if kind == "unix" and address.startswith("/"):
            return lambda stream: _connect(stream, socket.AF_UNIX, address)
        is_port = port.isascii() and port.isdigit() and int(port) < 1 << 16
        if kind in ("tcp", "udp") and host and is_port:
            # Names would be asked of name services, which the bundle does not have.
            host = "127.0.0.1" if host == "localhost" else host.strip("[]")
            return lambda stream: _to_port(stream, kind, host, int(port))
        raise LinkError(f"the agent knows no target {target!r}")

    async def _grpc(self, stream: Stream) -> None:
        stream.accept()
        if self._server is None:
            # For seconds, under emulation: not in the event loop's way.
            self._server = in_thread(self._make_server, name="import gRPC")
        server = await asyncio.shield(self._server)
        transport = StreamTransport(stream, server.protocol())
        try:
            await transport.wait_closed()
        finally:
            transport.abort()

    def _make_server(self) -> Server:
        from arcbox_agent.rpc import Server

        return Server(self._served)

    async def _clock(self, stream: Stream) -> None:
        """Set the clock to each time that comes, and answer with the clock then.

        A time is 8 bytes: nanoseconds since the epoch, big-endian and signed; 0 only asks.
        """
        received = b""
        while data := await stream.read():
            received += data
            while len(received) >= _TIME_BYTES:
                wanted = int.from_bytes(received[:_TIME_BYTES], "big", signed=True)
                received = received[_TIME_BYTES:]
                if wanted > 0 and abs(time.time_ns() - wanted) > _CLOCK_TOLERANCE_NS:
                    self._set_clock(wanted)
                await stream.write(time.time_ns().to_bytes(_TIME_BYTES, "big", signed=True))

    def _set_clock(self, unix_nanos: int) -> None:
        try:
            self._kernel.set_clock(unix_nanos)
        except OSError as error:
            _log.warning("cannot set the clock: %s", error)


async def _pong(stream: Stream) -> None:
    """Answer with the agent's version: a ping without the cost of HTTP/2."""
    stream.write_nowait(VERSION.encode())
    stream.finish()


async def _to_port(stream: Stream, kind: str, host: str, port: int) -> None:
    if kind == "tcp":
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        await _connect(stream, family, (host, port))
        return
    from arcbox_agent import datagrams

    await datagrams.connect(stream, host, port)


async def _connect(stream: Stream, family: int, address: str | tuple[str, int]) -> None:
    sock = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(_CONNECT_S):
            await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException as error:
        if sock is not None:
            sock.close()
        if isinstance(error, (OSError, TimeoutError, ValueError)):
            raise LinkError(f"cannot connect to {stream.target}: {error}") from error
        raise
    stream.accept()
    await pump(stream, sock)
