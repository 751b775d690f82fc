"""Has another processor run what a clone's first command will, beside all that comes before it.

Under emulation most of what a first command takes is the translation of code, and what one virtual
processor has translated the others have too.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from arcbox_agent import forker
from arcbox_agent.child import DEFAULT_PATH, Command, Ids, make_spare

if TYPE_CHECKING:
    from arcbox_agent.cgroup import Cgroup, Cgroups
    from arcbox_agent.forker import Spare
    from arcbox_agent.kernel import Kernel

_log = logging.getLogger(__name__)


class WarmUp:
    """A spare process that may become a command which does nothing."""

    def __init__(self, group: Cgroup, spare: Spare) -> None:
        """Take over both; see `prepare`."""
        env = {b"PATH": DEFAULT_PATH.encode()}
        self._command = Command([b"true"], env, Ids(0, 0, [0]), "/", optional_cwd=True, size=None)
        self._group = group
        self._spare = spare
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._begun = False

    @classmethod
    def prepare(cls, cgroups: Cgroups) -> WarmUp | None:
        """Fork the process, in a group of its own; None where that cannot be."""
        group = make_spare(cgroups)
        if group is None or group.spare is None:
            return None
        return cls(group, group.spare)

    def go_first(self, kernel: Kernel) -> None:
        """Have it run before all other processes, as the agent does, once it runs.

        Raises:
            OSError: The kernel refused.
        """
        kernel.go_first(wanted=True, pid=self._spare.pid)

    def begin(self) -> None:
        """Let it run, and wait for nothing. Only the first time counts."""
        if not self._begun:
            self._begun = True
            null = self._null
            try:
                self._spare.run(self._command, (null, null, null), null)
            except forker.ForkerLostError:
                _log.debug("the process for the warm-up is gone")

    def end(self, cgroups: Cgroups) -> None:
        """Take it away, run or not."""
        os.close(self._null)
        self._group.kill()
        try:
            self._spare.close()
        except ChildProcessError:
            _log.debug("the process for the warm-up was gone")
        cgroups.discard(self._group)
