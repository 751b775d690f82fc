"""The orderly end of a guest: its init's own way first, and ours when that takes too long."""

# pathlib is not imported and imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415, PTH112, PTH115, PTH119, PTH121

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import Protocol

from arcbox_agent.processes import list_processes

DEFAULT_GRACE_S = 25.0
_ANSWER_S = 0.2  # for the acknowledgement to leave
_LAST_GRACE_S = 3.0  # for what init did not end in the time it had
_KILL_GRACE_S = 2.0
_POLL_S = 0.05
_BUNDLE = "/run/arcbox/"
_PROGRAMS = (
    ("openrc-init", ("/sbin/openrc-shutdown", "--poweroff", "now")),
    ("runit", ("/sbin/poweroff",)),
    ("init", ("/sbin/poweroff",)),
)

_log = logging.getLogger(__name__)


class System(Protocol):
    """What a shutdown does to a machine; a fake in tests."""

    def ask_init(self) -> bool:
        """Start init's own shutdown; False where there is no init to ask."""

    def signal_all(self, number: int) -> None:
        """Signal every process but init and this one."""

    def others_alive(self) -> bool:
        """Whether any process is left but kernel threads, init and what runs from the bundle."""

    def settle_disks(self) -> None:
        """Write everything to the disks, and make read-only what can be."""

    def power_off(self) -> None:
        """Switch off, or begin anew if that was asked for."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


async def shut_down(system: System, grace_s: float) -> None:
    """Shut the machine down. Returns only if it could not be switched off, or in a test.

    Init has the grace for its own shutdown; its end is the machine's, so that what follows is only
    for an init that hangs. Without an init the processes have the grace instead.

    Args:
        system: What to act on.
        grace_s: Seconds between asking and killing; 0: 25.
    """
    grace_s = grace_s or DEFAULT_GRACE_S
    await system.sleep(_ANSWER_S)
    if system.ask_init():
        await system.sleep(grace_s)
        _log.warning("init did not switch off within %g s", grace_s)
        grace_s = _LAST_GRACE_S
    system.signal_all(signal.SIGTERM)
    if not await _all_ended(system, grace_s):
        system.signal_all(signal.SIGKILL)
        await _all_ended(system, _KILL_GRACE_S)
    system.settle_disks()
    system.power_off()


async def _all_ended(system: System, wait_s: float) -> bool:
    waited = 0.0
    while system.others_alive():
        if waited >= wait_s:
            return False
        await system.sleep(_POLL_S)
        waited += _POLL_S
    return True


class LinuxSystem:
    """The machine that the agent runs in."""

    def __init__(self, *, restart: bool = False) -> None:
        """End it, or let it begin anew, which is only for a machine without an init."""
        self._restart = restart

    def ask_init(self) -> bool:
        """Ask whichever init is process 1, in the way that it understands.

        Source: systemd(1) on SIGRTMIN+4; busybox init/init.c on SIGUSR2; openrc-shutdown(8).
        """
        if os.path.isdir("/run/systemd/system"):
            os.kill(1, signal.SIGRTMIN + 4)
            return True
        try:
            program = os.readlink("/proc/1/exe")
            is_started = os.path.samefile("/proc/1/root/", "/")
        except OSError:
            return False
        # While the initramfs holds init back, process 1 has another root. `supervise` is ours.
        if not is_started or program.startswith(_BUNDLE):
            return False
        name = os.path.basename(program)
        if name == "busybox":
            os.kill(1, signal.SIGUSR2)
            return True
        for known, command in _PROGRAMS:
            if name == known and os.access(command[0], os.X_OK):
                os.posix_spawn(command[0], command, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
                return True
        _log.warning("process 1 is %s, which has no shutdown that we know", program)
        return False

    def signal_all(self, number: int) -> None:
        """Signal every process but init and this one."""
        # What restarts the agent passes the signal on to it as it ends.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            os.kill(-1, number)
        except ProcessLookupError:
            _log.debug("there is no other process")

    def others_alive(self) -> bool:
        """Whether any process is left but kernel threads, init and what runs from the bundle."""
        return any(
            not each.is_kernel_thread
            and each.pid != 1
            and each.state not in "ZX"
            and not _is_ours(each.pid)
            for each in list_processes()
        )

    def settle_disks(self) -> None:
        """Write everything to the disks, and make read-only what can be."""
        from arcbox_agent.mounts import read_mounts
        from arcbox_agent.syscalls import remount_read_only

        os.sync()
        for mount in reversed(read_mounts()):
            if mount.is_writable_disk:
                try:
                    remount_read_only(mount.target)
                except OSError as error:
                    _log.info("%s", error)
        os.sync()

    def power_off(self) -> None:
        """Switch off, or begin anew."""
        from arcbox_agent.syscalls import power_off, restart

        if self._restart:
            restart()
        power_off()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


def _is_ours(pid: int) -> bool:
    """Whether a process runs from the bundle, as the agent does, or is gone.

    The bundle's `supervise` has one that it starts again whenever it ends.
    """
    try:
        return os.readlink(f"/proc/{pid}/exe").startswith(_BUNDLE)
    except OSError:
        return True
