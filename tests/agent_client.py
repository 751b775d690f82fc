"""A gRPC client of the agent, through a unix socket as the daemon serves it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from arcboxd.link.peer import Peer
from arcboxd.link.pump import pump
from arcboxd.listener import Listener
from arcboxd.wire.pb.arcbox.v1 import agent_pb2_grpc


@asynccontextmanager
async def agent_client(
    host: Peer, path: Path
) -> AsyncIterator[agent_pb2_grpc.AgentServiceAsyncStub]:
    """Serve the socket, whose clients reach the agent at the other end of the link."""
    clients: set[asyncio.Task[None]] = set()

    async def bridge(client: socket.socket) -> None:
        await pump(await host.open("grpc"), client)

    def accept(client: socket.socket) -> None:
        clients.add(asyncio.ensure_future(bridge(client)))

    listener = Listener(path, accept)
    listener.open()
    try:
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            stub: agent_pb2_grpc.AgentServiceAsyncStub = agent_pb2_grpc.AgentServiceStub(channel)
            yield stub
        await asyncio.gather(*clients)
    finally:
        listener.close(unlink=True)
