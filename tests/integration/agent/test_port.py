"""The agent on a character device: a terminal pair stands in for the virtio-serial port."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tty
from pathlib import Path

from arcbox_agent import VERSION
from arcboxd.link.guest_port import PortTransport
from arcboxd.link.peer import Peer
from arcboxd.wire.pb.arcbox.v1 import agent_pb2
from tests.agent_client import agent_client

SOURCE = Path(__file__).parents[3] / "src"


async def test_a_call_over_the_port_and_the_end_on_sigterm(tmp_path: Path) -> None:
    main, replica = os.openpty()
    tty.setraw(replica)
    os.set_blocking(main, False)
    options = ["--port", os.ttyname(replica), "--root", str(tmp_path), "--cgroup", ""]
    agent = subprocess.Popen(
        [sys.executable, "-m", "arcbox_agent", *options],
        env={"PYTHONPATH": str(SOURCE)},
        stdin=subprocess.DEVNULL,
    )
    host = Peer(role="host")
    port = PortTransport(main, host.protocol)

    try:
        async with asyncio.timeout(10):
            await host.wait_session()
        assert host.peer_hello == VERSION.encode()
        async with agent_client(host, tmp_path / "s") as client:
            reply = await client.Ping(agent_pb2.AgentPingRequest(message="x" * 100_000))
            assert len(reply.message) == 100_000
        agent.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(agent.wait, 5) == 0
    finally:
        agent.kill()
        agent.wait()
        host.close()
        port.close()
        os.close(replica)
        await asyncio.sleep(0.05)
