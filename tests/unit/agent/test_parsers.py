"""What the agent reads: the kernel's and the distribution's files."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcbox_agent.accounts import merge_keys
from arcbox_agent.disk import parse_superblock
from arcbox_agent.mounts import parse_mounts
from arcbox_agent.netlink import parse_addresses
from arcbox_agent.ports import has_listener
from arcbox_agent.processes import ProcessInfo
from arcbox_agent.sysinfo import parse_meminfo, parse_os_release, read_os_release
from arcbox_agent.trim import choose, report
from arcbox_agent.users import find_credentials
from arcboxd.errors import UserNotFoundError

MOUNTINFO = r"""
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
23 22 0:5 / /proc rw - proc proc rw
24 22 254:32 / /run/arcbox/bundle ro - squashfs /dev/vdc ro
25 22 254:0 /srv /mnt/bind rw - ext4 /dev/vda rw
26 22 254:48 /sub /mnt/sub rw shared:1 master:2 - xfs /dev/vdd rw
27 22 254:48 / /data\040with\134space rw - xfs /dev/vdd rw
28 22 254:64 / /mnt/frozen rw - ext4 /dev/vde ro
29 22 0:40 / /pool rw - btrfs /dev/vdf rw
nonsense
"""


def test_trim_takes_each_writable_disk_once() -> None:
    assert choose(parse_mounts(MOUNTINFO)) == ["/", "/data with\\space", "/pool"]


def test_trim_reports_each() -> None:
    def trim(target: str) -> int:
        if target == "/data":
            raise OSError(errno.EOPNOTSUPP, "x")
        if target == "/bad":
            raise OSError(errno.EIO, "Input/output error")
        return 1234

    text = report(["/", "/data", "/bad"], trim)
    assert text == "/: 1234 bytes trimmed; /data: not supported; /bad: Input/output error"
    assert "nothing" in report([], trim)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NAME=Alpine", "Alpine"),
        ('NAME="Alpine Linux"', "Alpine Linux"),
        ("NAME='Alpine Linux'", "Alpine Linux"),
        (r'NAME="a \"b\" \$c \\ \`d\`"', 'a "b" $c \\ `d`'),
        ("# NAME=no\n\nNAME=yes\n", "yes"),
        ("NAME=one\nNAME=two", "two"),
        ("NAME=", ""),
    ],
)
def test_os_release(text: str, name: str) -> None:
    assert parse_os_release(text)["NAME"] == name


def test_os_release_has_a_second_place(tmp_path: Path) -> None:
    assert read_os_release(str(tmp_path)) == {}
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/os-release").write_text("NAME=second")
    assert read_os_release(str(tmp_path)) == {"NAME": "second"}


def test_meminfo() -> None:
    text = "MemTotal:       2048 kB\nHugePages_Total:       3\nMemAvailable:  1 kB\n"
    assert parse_meminfo(text) == {"MemTotal": 2 << 20, "MemAvailable": 1024}


def test_listeners() -> None:
    table = (
        "  sl  local_address rem_address   st\n"
        "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n"
        "   1: 0100007F:0050 0100007F:1F91 01 00000000:00000000\n"
    )
    assert has_listener(table, 8080)
    assert not has_listener(table, 80)
    assert not has_listener(table, 8081)


def test_a_process_may_have_any_name() -> None:
    info = ProcessInfo(7, "7 (a) b (c) S 3 7 5 0 -1 2097216 0 0")
    assert (info.state, info.parent, info.session, info.is_kernel_thread) == ("S", 3, 5, True)


def test_netlink_leaves_out_what_is_local() -> None:
    def message(family: int, scope: int, raw: bytes, kind: int = 1) -> bytes:
        body = struct.pack("=BBBBI", family, 24, 0, scope, 2)
        body += struct.pack("=HH", 4 + len(raw), kind) + raw
        return struct.pack("=IHHII", 16 + len(body), 20, 2, 1, 0) + body

    packet = (
        message(socket.AF_INET, 254, bytes([127, 0, 0, 1]))
        + message(socket.AF_INET, 0, bytes([10, 0, 2, 15]), kind=2)
        + message(socket.AF_INET6, 253, bytes([0xFE, 0x80]) + bytes(14))
        + message(socket.AF_INET6, 0, bytes([0xFD]) + bytes(15))
    )
    found: list[tuple[int, int, str]] = []
    assert not parse_addresses(packet, found)
    assert parse_addresses(struct.pack("=IHHII", 16, 3, 0, 1, 0), found)
    assert [text for _, _, text in found] == ["10.0.2.15", "fd00::"]


@given(st.binary(max_size=200))
def test_netlink_survives_anything(packet: bytes) -> None:
    with contextlib.suppress(ValueError, struct.error):  # lengths that lie: the kernel's do not
        parse_addresses(packet, [])


def test_superblock() -> None:
    data = bytearray(1024)
    struct.pack_into("<I", data, 4, 1000)
    struct.pack_into("<I", data, 0x18, 2)
    struct.pack_into("<H", data, 0x38, 0xEF53)
    assert parse_superblock(bytes(data)) == (1000, 4096)
    struct.pack_into("<I", data, 0x60, 0x80)
    struct.pack_into("<I", data, 0x150, 1)
    assert parse_superblock(bytes(data)) == ((1 << 32) + 1000, 4096)
    with pytest.raises(OSError, match="superblock"):
        parse_superblock(bytes(1024))


LINES = st.lists(st.text(alphabet="abc #:", min_size=1, max_size=8).filter(str.strip), max_size=4)


@given(own=LINES, first=LINES, second=LINES)
def test_our_keys_are_replaced_and_other_lines_stay(
    own: list[str], first: list[str], second: list[str]
) -> None:
    text = "".join(f"{line}\n" for line in own)
    once = merge_keys(text, second)
    assert merge_keys(merge_keys(text, first), second) == once
    assert merge_keys(once, []) == text
    assert all(key in once.splitlines() for key in second)


def test_credentials(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert find_credentials(root, "").uid == 0
    with pytest.raises(UserNotFoundError, match="alice"):
        find_credentials(root, "alice")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("broken\n+::::::\nalice:x:7:8::/a:\n\n")
    (tmp_path / "etc/group").write_text("a:x:9:alice\nb:x:8:alice,bob\nc:x:10:malice\n")
    found = find_credentials(root, "alice")
    assert (found.uid, found.gid, found.groups, found.account.home) == (7, 8, [8, 9], "/a")
    assert find_credentials(root, "7:9").groups == [9]
    assert find_credentials(root, ":a").gid == 9
    with pytest.raises(UserNotFoundError, match="nope"):
        find_credentials(root, "alice:nope")
