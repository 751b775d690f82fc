"""A cluster's API server on loopback, with keys of its own: TLS, lists in pages, and watches."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]


@dataclass
class Keys:
    """An authority, and the pairs that it has signed for a server and for a client."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Keys:
        folder.mkdir()
        keys = cls(folder)
        keys._sign("authority")
        signed = ("-CA", str(keys.path("authority.pem")), "-CAkey", str(keys.path("authority.key")))
        keys._sign("server", *signed, "-addext", "subjectAltName=IP:127.0.0.1,IP:10.0.2.15")
        keys._sign("client", *signed)
        return keys

    def path(self, name: str) -> Path:
        return self.folder / name

    def _sign(self, name: str, *more: str) -> None:
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        files = ["-keyout", str(self.path(f"{name}.key")), "-out", str(self.path(f"{name}.pem"))]
        argv = ["openssl", "req", "-x509", *curve, *files, "-subj", f"/CN={name}", *more]
        subprocess.run(argv, check=True, capture_output=True)

    def server(self, *, ask: bool = True) -> ssl.SSLContext:
        """Give what a server proves itself with, and asks clients to."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path("server.pem"), self.path("server.key"))
        if ask:
            context.load_verify_locations(self.path("authority.pem"))
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def encoded(self, name: str) -> str:
        return base64.b64encode(self.path(name).read_bytes()).decode()

    def kubeconfig(self, *, client: Keys | None = None, token: str = "") -> str:
        """Give the guest's, in JSON, which is YAML."""
        whose = client or self
        user = {
            "client-certificate-data": whose.encoded("client.pem"),
            "client-key-data": whose.encoded("client.key"),
        }
        cluster = {
            "certificate-authority-data": self.encoded("authority.pem"),
            "server": "https://10.0.2.15:6443",
        }
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": cluster}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
                "users": [{"name": "u", "user": {"token": token} if token else user}],
            }
        )


def service(name: str, *node_ports: int, kind: str = "NodePort", **entry: object) -> Object:
    """Give a Service of the namespace ``default``."""
    ports = [{"port": 80, "nodePort": port, **entry} for port in node_ports]
    return {
        "metadata": {"namespace": "default", "name": name},
        "spec": {"type": kind, "ports": ports},
    }


def _line(kind: str, thing: Object) -> bytes:
    return json.dumps({"type": kind, "object": thing}).encode() + b"\n"


@dataclass
class Request:
    query: dict[str, str]
    headers: dict[str, str]

    @property
    def is_watch(self) -> bool:
        return "watch" in self.query


@dataclass
class ApiServer:
    """What a cluster has, and what its clients asked."""

    address: str
    services: dict[str, Object] = field(default_factory=dict)
    page_size: int = 500
    status: str = "200 OK"
    """Of every answer."""
    watch_status: str = "200 OK"
    """Of every answer to a watch."""
    body: bytes | None = None
    """Instead of any list."""
    watched: bytes | None = None
    """Instead of what any watch tells."""
    watch_ends: bool = False
    """Each watch ends at once, in order."""
    headers: tuple[str, ...] = ()
    requests: list[Request] = field(default_factory=list)
    connected: int = 0
    version: int = 100
    port: int = 0
    _history: list[tuple[int, bytes]] = field(default_factory=list)
    _watches: set[asyncio.Queue[bytes | None]] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _server: asyncio.Server | None = None

    @property
    def lists(self) -> int:
        return sum(not request.is_watch for request in self.requests)

    @property
    def watches(self) -> list[str]:
        """From which version each watch was asked for."""
        return [r.query["resourceVersion"] for r in self.requests if r.is_watch]

    # --- the cluster ------------------------------------------------------------------------------

    def put(self, thing: Object) -> None:
        name = thing["metadata"]["name"]
        kind = "MODIFIED" if name in self.services else "ADDED"
        self.services[name] = thing
        self._change(kind, thing)

    def remove(self, name: str) -> None:
        self._change("DELETED", self.services.pop(name))

    def _change(self, kind: str, thing: Object) -> None:
        self.version += 1
        thing["metadata"]["resourceVersion"] = str(self.version)
        self._history.append((self.version, _line(kind, thing)))
        self.tell(kind, thing)

    def tell(self, kind: str, thing: Object) -> None:
        self.say(_line(kind, thing))

    def say(self, data: bytes | None) -> None:
        """Send something to all that watch; None ends their watches in order."""
        for queue in self._watches:
            queue.put_nowait(data)

    # --- the server -------------------------------------------------------------------------------

    async def open(self, tls: ssl.SSLContext) -> None:
        self._server = await asyncio.start_server(self._connected, self.address, self.port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Be away: what is connected is cut off."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.cut()

    async def cut(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                    pairs = (line.split(": ", 1) for line in head[1:] if line)
                    parts = urlsplit(head[0].split(" ")[1])
                    assert parts.path == "/api/v1/services"
                    query = {key: values[0] for key, values in parse_qs(parts.query).items()}
                    request = Request(query, {k.lower(): v for k, v in pairs})
                    self.requests.append(request)
                    await self._answer(request, writer)
        finally:
            writer.transport.abort()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        status = self.status
        if status == "200 OK" and request.is_watch:
            status = self.watch_status
        if status != "200 OK":
            await self._head(writer, status, "Content-Length: 2")
            writer.write(b"{}")
        elif request.is_watch:
            await self._watch(writer, int(request.query["resourceVersion"]))
        else:
            body = self._page(request.query) if self.body is None else self.body
            await self._head(writer, status, f"Content-Length: {len(body)}")
            writer.write(body)
        await writer.drain()

    async def _head(self, writer: asyncio.StreamWriter, status: str, *headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", *headers, *self.headers, "", ""]
        writer.write("\r\n".join(lines).encode())
        await writer.drain()

    def _page(self, query: dict[str, str]) -> bytes:
        assert query["limit"] == "500"
        begin = int(query.get("continue", "0"))
        items = list(self.services.values())[begin : begin + self.page_size]
        end = begin + len(items)
        rest = {"continue": str(end)} if end < len(self.services) else {}
        metadata = {"resourceVersion": str(self.version), **rest}
        return json.dumps({"kind": "ServiceList", "metadata": metadata, "items": items}).encode()

    async def _watch(self, writer: asyncio.StreamWriter, since: int) -> None:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        for version, line in self._history:
            if version > since:
                queue.put_nowait(line)
        self._watches.add(queue)
        try:
            await self._head(writer, "200 OK", "Transfer-Encoding: chunked")
            if self.watched is not None:
                queue.put_nowait(self.watched)
            if self.watch_ends:
                queue.put_nowait(None)
            while (data := await queue.get()) is not None:
                # In two chunks: a line is where its end is.
                for part in filter(None, (data[:7], data[7:])):
                    writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                    await writer.drain()
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        finally:
            self._watches.discard(queue)


@contextlib.asynccontextmanager
async def serving(
    tls: ssl.SSLContext, address: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[ApiServer]:
    """Serve on loopback."""
    server = ApiServer(address, port=port)
    await server.open(tls)
    try:
        yield server
    finally:
        await server.close()
