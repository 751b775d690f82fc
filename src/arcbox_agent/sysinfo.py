"""What GetSystemInfo tells, read from the kernel and the distribution's own files."""

# pathlib is not imported and imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415, PTH123

from __future__ import annotations

import os
import re

from arcboxd.wire.pb.arcbox.v1 import agent_pb2

_UNESCAPE = re.compile(r"\\(.)")


def read(root: str) -> agent_pb2.SystemInfo:
    """Read it all; what cannot be read stays at its default."""
    kernel = os.uname()
    release = read_os_release(root)
    memory = parse_meminfo(_text("/proc/meminfo"))
    return agent_pb2.SystemInfo(
        kernel_version=kernel.release,
        os_name=release.get("NAME", "Linux"),
        os_version=release.get("VERSION_ID") or release.get("BUILD_ID", ""),
        arch=kernel.machine,
        total_memory=memory.get("MemTotal", 0),
        available_memory=memory.get("MemAvailable", 0),
        cpu_count=os.sysconf("SC_NPROCESSORS_ONLN"),
        load_average=os.getloadavg(),
        hostname=kernel.nodename,
        uptime=int(float((_text("/proc/uptime") or "0").split()[0])),
        ip_addresses=_addresses(),
    )


def read_os_release(root: str) -> dict[str, str]:
    """Read the distribution's description of itself.

    Source: os-release(5): /etc/os-release wins over /usr/lib/os-release.
    """
    text = _text(f"{root}/etc/os-release") or _text(f"{root}/usr/lib/os-release")
    return parse_os_release(text)


def parse_os_release(text: str) -> dict[str, str]:
    """Parse shell-like assignments: quotes of either kind, backslashes in double ones."""
    values = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if not equals or name.startswith("#"):
            continue
        if len(value) > 1 and value[0] == value[-1] == "'":
            value = value[1:-1]
        elif len(value) > 1 and value[0] == value[-1] == '"':
            value = _UNESCAPE.sub(r"\1", value[1:-1])
        else:
            value = _UNESCAPE.sub(r"\1", value)
        values[name] = value
    return values


def parse_meminfo(text: str) -> dict[str, int]:
    """Parse /proc/meminfo into bytes."""
    values = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        if unit == "kB":
            values[name] = int(number) * 1024
    return values


def _addresses() -> list[str]:
    from arcbox_agent.netlink import list_addresses

    try:
        return list_addresses()
    except OSError:
        return []


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
