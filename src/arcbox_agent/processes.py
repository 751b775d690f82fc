"""Processes as /proc shows them."""

# pathlib is not imported: start-up takes long under emulation.
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import os
import signal

_KERNEL_THREAD = 0x0020_0000  # PF_KTHREAD of include/linux/sched.h
_ROUNDS = 20


class ProcessInfo:
    """What /proc/PID/stat says of one process."""

    __slots__ = ("is_kernel_thread", "parent", "pid", "session", "state")

    def __init__(self, pid: int, stat: str) -> None:
        """Parse the file; what follows the command's name, which may hold anything."""
        fields = stat[stat.rindex(")") + 2 :].split()
        self.pid = pid
        self.state = fields[0]
        self.parent = int(fields[1])
        self.session = int(fields[3])
        self.is_kernel_thread = bool(int(fields[6]) & _KERNEL_THREAD)


def list_processes() -> list[ProcessInfo]:
    """List every process there is; those that end meanwhile are left out."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    found.append(ProcessInfo(int(name), file.read()))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def kill_tree(leader: int) -> None:
    """Kill a session's leader, its session and all descendants; for hosts without control groups.

    What has both left the session and lost its parent before this is called cannot be found.
    """
    members = {leader}
    sessions = {leader}
    for _ in range(_ROUNDS):
        alive = [each for each in list_processes() if each.state not in "ZX"]
        grew = True
        while grew:
            grew = False
            for each in alive:
                if each.pid not in members and (each.parent in members or each.session in sessions):
                    members.add(each.pid)
                    sessions.add(each.session)
                    grew = True
        targets = [each.pid for each in alive if each.pid in members]
        if not targets:
            return
        for pid in targets:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
