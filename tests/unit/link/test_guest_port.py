"""The port's transport, on a socket replaced under its descriptor as the host comes and goes.

A socket whose other end is closed polls as readable and hung up and reads as empty, as the device
does.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import time
from collections.abc import AsyncIterator

import pytest

from arcboxd.link.guest_port import PortTransport, open_port
from arcboxd.link.peer import Peer
from tests.unit.link.simulation import echo, exchange, until


class Port:
    """A device: `connect` and `disconnect` are what QEMU does when its client comes and goes."""

    def __init__(self) -> None:
        host, guest = socket.socketpair()
        self.fd = guest.detach()
        self.host: socket.socket | None = host
        os.set_blocking(self.fd, False)

    def disconnect(self) -> None:
        assert self.host is not None
        self.host.close()
        self.host = None

    def connect(self) -> socket.socket:
        self.host, guest = socket.socketpair()
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        os.dup2(guest.fileno(), self.fd)
        fcntl.fcntl(self.fd, fcntl.F_SETFL, flags)
        guest.close()
        return self.host


class Guest:
    def __init__(self) -> None:
        self.port = Port()
        self.peer = Peer(role="guest", accept=lambda _: echo)
        self.transport = PortTransport(self.port.fd, self.peer.protocol)

    async def host(self, sock: socket.socket | None) -> Peer:
        assert sock is not None
        peer = Peer(role="host")
        await asyncio.get_running_loop().create_connection(lambda: peer.protocol, sock=sock)
        return peer


@pytest.fixture
async def guest() -> AsyncIterator[Guest]:
    guest = Guest()
    yield guest
    guest.peer.close()
    await guest.peer.closed()
    signal.signal(signal.SIGIO, signal.SIG_DFL)


def is_congested(guest: Guest) -> bool:
    return guest.peer.protocol.congested


async def until_down(guest: Guest) -> None:
    await until(lambda: not guest.transport.is_connected)


async def test_a_session_over_the_port(guest: Guest) -> None:
    host = await guest.host(guest.port.host)
    await host.wait_session()
    assert await exchange(host, b"data" * 300_000) == b"data" * 300_000
    host.close()
    await host.closed()


async def test_the_host_goes_and_comes_and_no_processor_is_burnt(guest: Guest) -> None:
    host = await guest.host(guest.port.host)
    await host.wait_session()
    host.close()
    await host.closed()
    await until_down(guest)
    assert not guest.peer.is_up
    before = time.process_time()
    await asyncio.sleep(0.5)
    assert time.process_time() - before < 0.1
    sock = guest.port.connect()
    os.kill(os.getpid(), signal.SIGIO)
    host = await guest.host(sock)
    async with asyncio.timeout(0.5):
        await host.wait_session()
    assert await exchange(host, b"again") == b"again"
    assert guest.peer.session_count == 2
    host.close()
    await host.closed()


async def test_a_lost_signal_costs_a_second(guest: Guest) -> None:
    guest.port.disconnect()
    await until_down(guest)
    host = await guest.host(guest.port.connect())
    async with asyncio.timeout(3):
        await host.wait_session()
    host.close()
    await host.closed()


async def test_what_the_host_does_not_read_is_held_back_and_then_dropped(guest: Guest) -> None:
    guest.transport.write(bytes(4 << 20))
    assert guest.transport.get_write_buffer_size() > 1 << 20
    assert is_congested(guest)
    before = time.process_time()
    await asyncio.sleep(0.3)
    assert time.process_time() - before < 0.1
    guest.port.disconnect()
    await until_down(guest)
    assert guest.transport.get_write_buffer_size() == 0
    assert not is_congested(guest)
    guest.transport.write(b"nobody hears this")
    assert guest.transport.get_write_buffer_size() == 0


async def test_a_missing_device_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        await open_port("/dev/vport-none", lambda: Peer(role="guest").protocol)
