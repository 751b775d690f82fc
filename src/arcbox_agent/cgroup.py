"""A control group for each run process, so that none of its descendants can escape a kill.

The version 2 hierarchy is mounted privately below /run/arcbox, whatever the distribution makes of
its own /sys/fs/cgroup: it is the same tree everywhere, and systemd leaves groups alone that it did
not make.

Source: Documentation/admin-guide/cgroup-v2.rst (cgroup.kill since Linux 5.14).
"""

# pathlib is not imported and imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415, PTH102, PTH103, PTH106, PTH110, PTH123, PTH208

from __future__ import annotations

import errno
import logging
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arcbox_agent.forker import Spare

_log = logging.getLogger(__name__)


class Cgroup:
    """One group, with a handle on its directory for clone3.

    Attributes:
        spare: A process in it that waits to become a command.
    """

    __slots__ = ("fd", "path", "spare")

    def __init__(self, path: str, *, may_exist: bool = False) -> None:
        """Make the group.

        Raises:
            OSError: The hierarchy does not allow it, or it exists and may not.
        """
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            if not may_exist:
                raise
        self.path = path
        self.spare: Spare | None = None
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def release_handle(self) -> None:
        """Close the handle; the group stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def pids(self) -> list[int]:
        """List the processes in the group; none where it cannot be read."""
        try:
            with open(f"{self.path}/cgroup.procs", encoding="ascii") as procs:
                return [int(line) for line in procs]
        except OSError:
            return []

    def kill(self) -> None:
        """Kill every process in the group, those that are being forked included."""
        try:
            _write(f"{self.path}/cgroup.kill", b"1")
        except FileNotFoundError:
            self._kill_each()

    def _kill_each(self) -> None:
        """Kill on a kernel before 5.14: frozen first, so that nothing forks meanwhile."""
        try:
            _write(f"{self.path}/cgroup.freeze", b"1")
        except OSError as error:
            _log.debug("cannot freeze %s: %s", self.path, error)
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def remove(self) -> bool:
        """Remove the group if nothing lives in it; say whether it is gone."""
        self.release_handle()
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EBUSY:
                _log.warning("cannot remove %s: %s", self.path, error)
            return False
        return True


class Cgroups:
    """Makes the groups, and removes those that have become empty."""

    def __init__(self, mount_point: str) -> None:
        """Use this mount point of a version 2 hierarchy; empty: there shall be none."""
        self._mount_point = mount_point
        self._parent: str | None = None
        self._tried = not mount_point
        self._number = 0
        self._leftovers: list[Cgroup] = []
        self._ready: Cgroup | None = None

    def prepare(self) -> None:
        """Mount the hierarchy, once, so that the first `create` is as quick as the others."""
        if not self._tried:
            self._tried = True
            self._set_up()

    @property
    def hierarchy(self) -> str:
        """Where the whole hierarchy is mounted; empty where there is none."""
        self.prepare()
        return "" if self._parent is None else self._mount_point

    def create(self) -> Cgroup | None:
        """Make a new group, or answer None where the kernel offers none."""
        if self._ready is not None:
            ready, self._ready = self._ready, None
            return ready
        self.prepare()
        if self._parent is None:
            return None
        self.sweep()
        while True:
            self._number += 1
            try:
                return Cgroup(f"{self._parent}/exec-{self._number}")
            except FileExistsError:  # of an agent before this one
                continue
            except OSError as error:
                _log.warning("no cgroup for a process: %s", error)
                return None

    def put_back(self, group: Cgroup) -> None:
        """Have the next `create` give that one."""
        self._ready = group

    def of_service(self, name: str) -> Cgroup | None:
        """Open the group of a service, made if it is missing; None where the kernel offers none.

        It stays when the service ends: what the service leaves running may live in it.
        """
        self.prepare()
        if self._parent is None:
            return None
        try:
            return Cgroup(f"{self._parent}/service-{name}", may_exist=True)
        except OSError as error:
            _log.warning("no cgroup for the service %s: %s", name, error)
            return None

    def discard(self, group: Cgroup) -> None:
        """Remove a group now, or as soon as the last process in it has ended."""
        if not group.remove():
            self._leftovers.append(group)

    def sweep(self) -> None:
        """Remove the discarded groups that have become empty."""
        if self._leftovers:
            self._leftovers = [group for group in self._leftovers if not group.remove()]

    def _set_up(self) -> None:
        parent = f"{self._mount_point}/arcbox"
        try:
            if not os.path.exists(f"{self._mount_point}/cgroup.procs"):
                from arcbox_agent.syscalls import mount

                os.makedirs(self._mount_point, 0o700, exist_ok=True)
                mount("cgroup2", self._mount_point, "cgroup2")
            os.makedirs(parent, 0o755, exist_ok=True)
            for name in os.listdir(parent):  # of an agent before this one
                if name.startswith("exec-"):
                    _try_rmdir(f"{parent}/{name}")
        except OSError as error:
            _log.warning("no control groups: %s; processes are found in /proc instead", error)
            return
        self._parent = parent


def _try_rmdir(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        _log.debug("%s is in use", path)


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
