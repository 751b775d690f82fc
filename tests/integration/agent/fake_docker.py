"""Docker's daemon as far as the agent talks to it: HTTP on a unix socket, containers, events.

Also a program: ``fake_docker.py --config-file FILE`` serves as dockerd does.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

Json = dict[str, object]


class FakeDocker:
    """A daemon whose containers are what a test says."""

    def __init__(self) -> None:
        self.containers: dict[str, Json] = {}
        self.asked: list[str] = []
        self.filters: Json = {}
        self.chunked = True
        self.silent = False
        self.live_restore = True
        self.apart: Callable[[], bool] = lambda: False
        """Whether it has not found its containerd."""
        self._listeners: list[asyncio.Queue[Json]] = []
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    async def listen(self, socket: str) -> None:
        Path(socket).unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, socket)

    async def die(self) -> None:
        """End as by SIGKILL: the socket's file stays."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        while self._writers:  # noqa: ASYNC110 - until all handlers are gone
            await asyncio.sleep(0.01)
        self._listeners.clear()

    def run(self, name: str, ports: dict[str, list[tuple[str, str]]], address: str) -> None:
        """Run a container, and tell of it."""
        self.put(name, ports, address)
        self.tell("container", "start", name)

    def put(self, name: str, ports: dict[str, list[tuple[str, str]]], address: str) -> None:
        published = {
            port: [{"HostIp": ip, "HostPort": number} for ip, number in bindings] or None
            for port, bindings in ports.items()
        }
        networks = {"bridge": {"IPAddress": address, "Gateway": "172.17.0.1"}}
        self.containers[name] = {
            "Id": name,
            "Name": f"/{name}-name",
            "State": {"Running": True},
            "NetworkSettings": {"Ports": published, "Networks": networks},
        }

    def remove(self, name: str) -> None:
        del self.containers[name]
        self.tell("container", "die", name)
        self.tell("container", "destroy", name)

    def tell(self, kind: str, action: str, container: str) -> None:
        actor: Json = {"ID": container, "Attributes": {}}
        if kind == "network":
            actor = {"ID": "net", "Attributes": {"container": container}}
        for queue in self._listeners:
            queue.put_nowait({"Type": kind, "Action": action, "Actor": actor})

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ")[1]
            self.asked.append(path)
            if self.silent:
                await reader.read()
            elif path.startswith("/events"):
                self.filters = json.loads(parse_qs(urlsplit(path).query)["filters"][0])
                await self._tell_events(reader, writer)
            else:
                self._answer(writer, *self._find(unquote(path)))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def _find(self, path: str) -> tuple[int, bytes]:
        if path == "/_ping":
            return 200, b"OK"
        if path == "/version":
            found_it = [] if self.apart() else [{"Name": "containerd", "Version": "1.7.0"}]
            return 200, json.dumps({"Components": [{"Name": "Engine"}, *found_it]}).encode()
        if path == "/info":
            return 200, json.dumps({"LiveRestoreEnabled": self.live_restore}).encode()
        if path == "/containers/json":
            found = [
                {"Id": name, "Ports": [{"PrivatePort": 1, "PublicPort": 1}]}
                for name in self.containers
            ]
            return 200, json.dumps(found).encode()
        name = path.removeprefix("/containers/").removesuffix("/json")
        if name in self.containers:
            return 200, json.dumps(self.containers[name]).encode()
        return 404, b'{"message":"No such container"}'

    def _answer(self, writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
        if self.chunked:
            half = len(body) // 2
            pieces = [piece for piece in (body[:half], body[half:]) if piece]
            coded = b"".join(b"%x;x=y\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
            writer.write(b"HTTP/1.1 %d X Y\r\nTransfer-Encoding: chunked\r\n\r\n" % status)
            writer.write(coded + b"0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(body)))
            writer.write(body)

    async def _tell_events(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        queue: asyncio.Queue[Json] = asyncio.Queue()
        self._listeners.append(queue)
        gone = asyncio.ensure_future(reader.read())
        try:
            while not gone.done():
                event = asyncio.ensure_future(queue.get())
                await asyncio.wait((event, gone), return_when=asyncio.FIRST_COMPLETED)
                if not event.done():
                    event.cancel()
                    return
                # Cut in the middle: the pieces of the body are not its lines.
                line = json.dumps(event.result()).encode() + b"\n"
                for piece in (line[:7], line[7:]):
                    writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await writer.drain()
        finally:
            gone.cancel()
            if queue in self._listeners:
                self._listeners.remove(queue)


async def main(config_path: str) -> None:
    config = json.loads(Path(config_path).read_text())
    docker = FakeDocker()
    docker.apart = Path(config_path).with_name("apart").exists
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)

    def reload() -> None:
        docker.live_restore = json.loads(Path(config_path).read_text())["live-restore"]
        print("reloaded", docker.live_restore, flush=True)  # noqa: T201 - its log

    loop.add_signal_handler(signal.SIGHUP, reload)
    print("dockerd runs", flush=True)  # noqa: T201 - its log
    await docker.listen(config["hosts"][0].removeprefix("unix://"))
    await ended.wait()
    print("dockerd ends", flush=True)  # noqa: T201 - its log


if __name__ == "__main__":
    asyncio.run(main(sys.argv[2]))
