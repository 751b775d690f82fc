from __future__ import annotations

import json

from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from tests.integration.cli.conftest import Arcbox
from tests.integration.cli.stub import StubDaemon
from tests.integration.cli.stub_ports import TAKEN


def test_add_passes_each_forward_and_prints_where_it_is_reached(
    arcbox: Arcbox, daemon: StubDaemon
) -> None:
    done = arcbox.run("port", "add", "web", "8080:80", "[::1]::127.0.0.1:53/udp")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"127.0.0.1:8080\n[::1]:33333/udp\n"
    assert daemon.host.requests == [
        host_pb2.AddPortRequest(id="web", protocol="tcp", host_port=8080, guest_port=80),
        host_pb2.AddPortRequest(
            id="web",
            protocol="udp",
            host_address="::1",
            guest_address="127.0.0.1",
            guest_port=53,
        ),
    ]


def test_a_port_that_is_not_open_yet_is_told(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("port", "add", "web", f"{TAKEN}:80", "8080:80")
    assert (done.returncode, done.stdout) == (1, b"127.0.0.1:4040\n127.0.0.1:8080\n")
    assert done.stderr == (
        b"arcbox: 127.0.0.1:4040 is kept, but not open yet: it is taken by machine 'db' (user)\n"
        b"  hint: it opens once it can; or remove it with: arcbox port rm web 4040\n"
    )


def test_what_makes_no_sense_is_refused_before_anything_is_done(
    arcbox: Arcbox, daemon: StubDaemon
) -> None:
    done = arcbox.run("port", "add", "web", "8080:80", "80:web:80")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"'80:web:80' is no port to forward" in done.stderr
    assert arcbox.run("port", "rm", "web", "80/sctp").returncode == 2
    assert daemon.host.requests == []


def test_several_are_removed_and_one_failure_fails(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("port", "rm", "web", str(TAKEN), "0.0.0.0:53/udp")
    assert (done.returncode, done.stdout) == (1, b"0.0.0.0:53/udp\n")
    assert done.stderr == b"arcbox: there is no such forward\n  hint: arcbox port ls\n"
    assert daemon.host.requests == [
        host_pb2.RemovePortRequest(
            id="web",
            protocol="udp",
            host_address="0.0.0.0",  # noqa: S104
            host_port=53,
        )
    ]


def test_forwards_are_listed(arcbox: Arcbox, daemon: StubDaemon) -> None:
    done = arcbox.run("port", "ls")
    assert (done.returncode, done.stderr) == (0, b"")
    header, ssh, dns = (line.split("   ") for line in done.stdout.decode().splitlines())
    assert [cell.strip() for cell in header if cell.strip()] == [
        *("MACHINE", "HOST", "GUEST", "SOURCE", "STATE", "DETAIL")
    ]
    assert [cell.strip() for cell in ssh if cell.strip()] == [
        *("web", "127.0.0.1:2222", "22", "ssh", "open", "-")
    ]
    assert [cell.strip() for cell in dns if cell.strip()] == [
        *("web", "[::1]:53/udp", "172.17.0.2:53", "container:\\x1b[2Jdns", "failed"),
        "port 53 is for root only on this host",
    ]
    arcbox.run("port", "ls", "web")
    assert daemon.host.requests[-1] == host_pb2.ListPortsRequest(id="web")


def test_forwards_as_json(arcbox: Arcbox, daemon: StubDaemon) -> None:
    assert json.loads(arcbox.run("port", "ls", "--json").stdout)[0] == {
        "machine": "web",
        "protocol": "tcp",
        "host_address": "127.0.0.1",
        "host_port": 2222,
        "guest_address": "",
        "guest_port": 22,
        "source": "ssh",
        "state": "open",
        "detail": "",
    }
