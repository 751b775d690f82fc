"""How a forward is written."""
# ruff: noqa: S104 - compared, or meant to be open

from __future__ import annotations

import pytest

from arcboxd.cli.port import parse_place, parse_port
from arcboxd.cli.usage import CliUsageError
from arcboxd.client.views import NewPort


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("8080:80", NewPort(80, 8080)),
        ("80", NewPort(80)),
        (":80", NewPort(80)),
        ("0:80", NewPort(80)),
        ("8080:80/udp", NewPort(80, 8080, protocol="udp")),
        ("0.0.0.0:8080:80/tcp", NewPort(80, 8080, "0.0.0.0")),
        ("127.0.0.1::80", NewPort(80, 0, "127.0.0.1")),
        ("localhost:8080:80", NewPort(80, 8080, "localhost")),
        ("8080:127.0.0.1:80", NewPort(80, 8080, "", "127.0.0.1")),
        ("127.0.0.1:80", NewPort(80, 0, "", "127.0.0.1")),
        ("[::1]:8080:[fd00::2]:80", NewPort(80, 8080, "::1", "fd00::2")),
        ("10.0.0.1:8080:172.17.0.2:80/udp", NewPort(80, 8080, "10.0.0.1", "172.17.0.2", "udp")),
    ],
)
def test_forwards(text: str, port: NewPort) -> None:
    assert parse_port(text) == port


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "a", "8080:", "8080:80/", "8080:80/sctp", "70000:80", "80:web:80", "web:80:80"),
        *("1.2.3.4:1:2:3", "1:2:3", "::1:80:80", "[::1:80", "8080:80:", "-1:80", "1.1.1.1:80:"),
    ],
)
def test_what_is_no_forward_is_refused(text: str) -> None:
    with pytest.raises(CliUsageError, match="no port to forward"):
        parse_port(text)


def test_the_hosts_side_of_a_forward() -> None:
    assert parse_place("8080") == ("tcp", "", 8080)
    assert parse_place("127.0.0.1:53/udp") == ("udp", "127.0.0.1", 53)
    assert parse_place("[::1]:80") == ("tcp", "::1", 80)
    for text in ("", "1:2", "a:80", "1.2.3.4:1:2", "80/x"):
        with pytest.raises(CliUsageError, match="no port to forward"):
            parse_place(text)
