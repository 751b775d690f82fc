"""Which way each forward goes, and what is refused."""
# ruff: noqa: S104 - compared, or meant to be open

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from arcboxd.domain.ports import PortBinding, UserForward
from arcboxd.errors import InvalidArgumentError, PreconditionError, StoreError
from arcboxd.hypervisor.base import Forward
from arcboxd.ports import record
from arcboxd.ports.plan import Wanted, parse_address, published
from arcboxd.ports.sockets import probe


def binding(host: str, port: int = 8080, protocol: str = "tcp") -> PortBinding:
    return PortBinding(protocol, host, port, "172.17.0.2", 80)


@pytest.mark.parametrize("any_address", ["", "0.0.0.0", "::", "10.0.2.15"])
def test_a_port_published_on_any_address_goes_through_the_hypervisor(any_address: str) -> None:
    (wanted,) = published([binding(any_address)], "127.0.0.1")
    # To the port that the guest publishes, not the container's.
    assert wanted.direct == Forward("tcp", "127.0.0.1", 8080, 8080)
    (wanted,) = published([binding(any_address, protocol="udp")], "0.0.0.0")
    assert wanted.direct == Forward("udp", "0.0.0.0", 8080, 8080)


@pytest.mark.parametrize(
    ("asked", "host"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "127.0.0.1"), ("192.168.1.5", "192.168.1.5")],
)
def test_what_the_hypervisor_does_not_reach_goes_to_the_container(asked: str, host: str) -> None:
    (wanted,) = published([binding(asked)], "0.0.0.0")
    assert wanted.direct is None
    assert (wanted.host_address, wanted.host_port) == (host, 8080)
    assert wanted.target == "tcp:172.17.0.2:80"


def test_without_a_containers_address_the_guests_loopback_is_meant() -> None:
    (wanted,) = published([PortBinding("udp", "127.0.0.1", 53, "", 53)], "127.0.0.1")
    assert wanted.target == "udp:127.0.0.1:53"


def test_an_address_of_ipv6_goes_over_the_link() -> None:
    (wanted,) = published([binding("")], "2001:db8::1")
    assert wanted.direct is None
    assert wanted.target == "tcp:10.0.2.15:8080"
    assert str(wanted) == "[2001:db8::1]:8080/tcp"
    assert Wanted("tcp", "127.0.0.1", 1, "fd00::2", 80).target == "tcp:[fd00::2]:80"


def test_twins_are_one_and_nonsense_is_none() -> None:
    assert len(published([binding("0.0.0.0"), binding("::")], "127.0.0.1")) == 1
    nonsense = [
        binding("evil; rm -rf"),
        binding("", 0),
        binding("", 70000),
        binding("", protocol="sctp"),
        PortBinding("tcp", "127.0.0.1", 80, "host.name", 80),
        PortBinding("tcp", "127.0.0.1", 80, "172.17.0.2", 0),
        binding("fe80::1%eth0"),
    ]
    assert published(nonsense, "127.0.0.1") == ()


def test_addresses() -> None:
    assert parse_address("localhost") == "127.0.0.1"
    assert parse_address("") == ""
    assert parse_address("::ffff:127.0.0.1") == "127.0.0.1"
    assert parse_address("0:0:0:0:0:0:0:1") == "::1"
    for text in ("web", "1.2.3", "127.0.0.1:80", "fe80::1%lo", "[::1]"):
        with pytest.raises(InvalidArgumentError, match="no IP address"):
            parse_address(text)


def test_the_users_own_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "ports.json"
    assert record.read(path) == ()
    own = (
        UserForward("tcp", "127.0.0.1", 8080, "", 80),
        UserForward("udp", "::1", 53, "127.0.0.1", 53),
    )
    record.write(path, own)
    assert record.read(path) == own
    assert path.stat().st_mode & 0o777 == 0o600


_FIELDS = '"protocol": "tcp", "guest_address": "", "guest_port": 1}]}'


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"version": 2, "forwards": []}',
        '{"version": 1, "forwards": [{"protocol": "tcp"}]}',
        '{"version": 1, "forwards": [{"host_address": "x", "host_port": 1, ' + _FIELDS,
        '{"version": 1, "forwards": [{"host_address": "", "host_port": "1", ' + _FIELDS,
    ],
)
def test_a_file_that_is_not_ours_is_not_written_over(tmp_path: Path, content: str) -> None:
    path = tmp_path / "ports.json"
    path.write_text(content)
    with pytest.raises(StoreError, match=r"ports\.json"):
        record.read(path)


def test_why_the_host_cannot_open_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_socket: object, _address: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("arcboxd.ports.sockets.socket.socket.bind", refuse)
    with pytest.raises(PreconditionError, match="port 80 is for root only") as caught:
        probe(Wanted("tcp", "127.0.0.1", 80, "", 80))
    assert "net.ipv4.ip_unprivileged_port_start=80" in caught.value.hint
