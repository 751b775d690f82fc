"""The user's own forwards to a real machine: every way, and through all that happens to it."""

from __future__ import annotations

import json
import shlex
import socket
import urllib.request
from typing import TypedDict

import pytest

from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from arcboxd.wire.pb.arcbox.v1 import machine_pb2
from tests.vm.conftest import Host
from tests.vm.waiting import until

BUSYBOX = "/run/arcbox/bundle/bin/busybox"
UDP_ECHO = (
    "$s = IO::Socket::INET->new(Proto => 'udp', LocalAddr => $ARGV[0], LocalPort => $ARGV[1]);"
    "while (defined $s->recv($d, 65536)) { $s->send(uc $d) }"
)
PAGE = "x" * 3_000_000
WAYS = ("0:8000", ":127.0.0.1:8001", "0:7000/udp", ":127.0.0.1:7001/udp")


class Listed(TypedDict):
    """A line of `arcbox port ls --json`, as far as it is used here."""

    host_port: int
    source: str
    state: str
    detail: str


def listed(host: Host) -> list[Listed]:
    """List the forwards as a user does."""
    ports: list[Listed] = json.loads(host.arcbox("port", "ls", "dev", "--json").stdout)
    return ports


def state(host: Host, port: int) -> str:
    """Tell how a forward is."""
    return next((p["state"] for p in listed(host) if p["host_port"] == port), "gone")


def fetch(port: int) -> str:
    """Read the page that the guest serves."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/page", timeout=20) as answer:
        return str(answer.read().decode())


def echo(port: int, data: bytes) -> bytes:
    """Ask a UDP service, again and again if the answer is lost."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.connect(("127.0.0.1", port))
        for _ in range(10):
            sock.send(data)
            try:
                return sock.recv(65536)
            except TimeoutError:
                continue
    raise AssertionError("nothing came back")


def reach_all(ports: list[int]) -> None:
    """See that each forward leads to its service."""
    tcp, tcp_inner, udp, udp_inner = ports
    assert fetch(tcp) == fetch(tcp_inner) == PAGE
    assert echo(udp, b"abc") == echo(udp_inner, b"abc") == b"ABC"


def refused(port: int) -> bool:
    """Whether nothing listens on a port of the host."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture(scope="module")
def served(host: Host, machine_booted: str) -> str:
    """Start services in the guest: on any address, and on its loopback interface alone."""
    host.sh(
        machine_booted,
        f"mkdir -p /root/www; head -c {len(PAGE)} /dev/zero | tr '\\0' x >/root/www/page;"
        f"{BUSYBOX} httpd -p 8000 -h /root/www; {BUSYBOX} httpd -p 127.0.0.1:8001 -h /root/www;"
        + "".join(
            f"setsid perl -MIO::Socket::INET -e {shlex.quote(UDP_ECHO)} {address} {port} "
            "</dev/null >/dev/null 2>&1 & "
            for address, port in (("0.0.0.0", 7000), ("127.0.0.1", 7001))  # noqa: S104
        ),
    )
    return machine_booted


@pytest.fixture(scope="module")
def ports(host: Host, served: str) -> list[int]:
    """Forward to each of them."""
    made = host.arcbox("port", "add", served, *WAYS).stdout.decode().split()
    assert [place.partition("/")[2] for place in made] == ["", "", "udp", "udp"]
    return [int(place.partition(":")[2].partition("/")[0]) for place in made]


def test_every_way_is_open(host: Host, ports: list[int]) -> None:
    reach_all(ports)
    found = listed(host)
    assert {p["state"] for p in found} == {"open"}
    assert [p["source"] for p in found] == ["ssh", *["user"] * 4]


def test_a_taken_port_opens_when_it_is_free(host: Host, served: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = host.arcbox("port", "add", served, f"{port}:8000", check=False)
        assert done.returncode == 1
        assert b"taken by another program" in done.stderr
        assert state(host, port) == "taken"
    until(lambda: state(host, port) == "open", 30, "the port opens")
    assert fetch(port) == PAGE
    host.arcbox("port", "rm", served, str(port))
    assert refused(port)
    assert state(host, port) == "gone"


def test_a_new_daemon_takes_them_over(host: Host, served: str, ports: list[int]) -> None:
    host.arcbox("daemon", "stop")
    # What the hypervisor does goes on.
    assert fetch(ports[0]) == PAGE
    host.arcbox("daemon", "start")
    until(lambda: all(state(host, port) == "open" for port in ports), 60, "all are open again")
    reach_all(ports)


def test_a_resumed_machine_has_them(host: Host, served: str, ports: list[int]) -> None:
    host.ext.Suspend(host_pb2.SuspendRequest(id=served), timeout=300)
    assert refused(ports[0])
    assert refused(ports[1])
    assert {p["state"] for p in listed(host)} == {"waiting"}
    host.ext.Resume(host_pb2.ResumeRequest(id=served), timeout=300)
    until(lambda: all(state(host, port) == "open" for port in ports), 60, "all are open again")
    reach_all(ports)


def test_a_stopped_machine_has_none_open(host: Host, served: str, ports: list[int]) -> None:
    host.machines.Stop(machine_pb2.StopMachineRequest(id=served, force=True), timeout=300)
    assert all(refused(port) for port in ports[:2])
    assert {p["detail"] for p in listed(host) if p["source"] == "user"} == {
        "the machine is stopped"
    }
    host.arcbox("port", "rm", served, *(f"{port}/udp" for port in ports[2:]))
    assert {p["host_port"] for p in listed(host) if p["source"] == "user"} == set(ports[:2])
