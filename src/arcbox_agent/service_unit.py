"""One service under supervision: its process, and what became of those before."""

# pathlib is not imported: start-up takes long under emulation.
# ruff: noqa: PTH110

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from arcbox_agent import child

if TYPE_CHECKING:
    from arcbox_agent.service_record import Service

FIRST_DELAY_S = 0.2
"""Before the first restart; it doubles with each failure."""

_SHELLS = ("/run/arcbox/bundle/bin/busybox", "/bin/sh")


class Unit:
    """A service under supervision.

    Attributes:
        service: What runs.
        pid: Of its main process; 0 while there is none.
        failure: How its last process ended, as the end of a sentence; empty if none has.
        deaths: How many of its processes have ended unasked.
        ended: Set while there is no process.
    """

    def __init__(self, service: Service) -> None:
        """Begin without a process."""
        self.service = service
        self.pid = 0
        self.failure = ""
        self.deaths = 0
        self.ended = asyncio.Event()
        self.ended.set()
        self.wanted = True
        self.delay_s = FIRST_DELAY_S
        self.began = 0.0
        self.pidfd = -1
        self.failure_fd = -1
        self.command: child.Command | None = None
        self.timer: asyncio.TimerHandle | None = None

    def cancel_restart(self) -> None:
        """Forget that it was to start again."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def signal(self, number: int) -> None:
        """Signal the main process; nothing while there is none."""
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                return

    def reap(self) -> str:
        """Say how the process ended, which it has; one that is not our child does not tell."""
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            return "ended"
        code = os.waitstatus_to_exitcode(status)
        if self.failure_fd >= 0 and self.command is not None:
            failure = child.read_failure(self.failure_fd, self.command)
            if failure is not None:
                return f"could not be started: {failure[1]}"
        if code < 0:
            return f"was ended by signal {-code} ({signal.strsignal(-code)})"
        return f"ended with status {code}"


def make_command(service: Service) -> child.Command:
    """Decide what to run for a service: as root, in the root directory, without a terminal."""
    argv = service.argv
    if service.prelude:
        shell = next(each for each in _SHELLS if each == _SHELLS[-1] or os.path.exists(each))
        applet = [] if shell == _SHELLS[-1] else ["sh"]
        argv = [shell, *applet, "-c", f'{service.prelude}\nexec "$@"', service.name, *argv]
    return child.Command(
        [os.fsencode(each) for each in argv],
        {os.fsencode(name): os.fsencode(value) for name, value in service.env.items()},
        child.Ids(0, 0, [0]),
        "/",
        optional_cwd=True,
        size=None,
    )
