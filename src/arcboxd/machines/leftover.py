"""Who listens on a unix socket, found without anything having been recorded."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from arcboxd.domain.machine import ProcessIdentity
from arcboxd.process import identify

_ACCEPTS = 0x10000
"""``__SO_ACCEPTCON``, the flag of a listening socket in /proc/net/unix. Source: linux/net.h."""


@dataclass(frozen=True, slots=True)
class Listener:
    """What is at the other end of a socket's path."""

    connects: bool
    """Something listens; if not, nothing that made the socket is alive."""
    process: ProcessIdentity | None
    """The one process of this user that has it, if there is exactly one."""


def listener(path: Path) -> Listener:
    """Find the process that listens on a path.

    SO_PEERCRED does not tell: it names whoever called listen(2), and QEMU inherits its sockets from
    a daemon that may be gone.
    """
    inodes = _listening_inodes(path)
    if not inodes:
        return Listener(connects=False, process=None)
    holders = {pid for pid in _own_pids() if inodes & _socket_inodes(pid)}
    process = identify(holders.pop()) if len(holders) == 1 else None
    return Listener(connects=True, process=process)


def _listening_inodes(path: Path) -> set[int]:
    if not path.exists():
        return set()
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(str(path))
    except (ConnectionRefusedError, FileNotFoundError):
        return set()
    except OSError:
        # A full backlog is a listener too.
        pass
    found = set()
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(None, 7)
        if len(fields) == 8 and fields[7] == str(path) and int(fields[3], 16) & _ACCEPTS:  # noqa: PLR2004
            found.add(int(fields[6]))
    return found or {-1}


def _own_pids() -> list[int]:
    me, mine = os.getpid(), os.getuid()
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != me:
            try:
                if entry.stat().st_uid == mine:
                    pids.append(int(entry.name))
            except OSError:
                continue
    return pids


def _socket_inodes(pid: int) -> set[int]:
    found: set[int] = set()
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # closed meanwhile; the others are still there
                target = str(descriptor.readlink())
                if target.startswith("socket:["):
                    found.add(int(target[8:-1]))
    return found
