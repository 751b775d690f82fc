"""What tells a clone from its template: that the system was settled, and what begins afterwards.

`/run/arcbox/settled` is there from Settle until a clone's Configure, so that an agent that was
restarted in between knows. It lists the services that init does not start by itself.
"""

# pathlib is not imported and imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415, PTH108, PTH110

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from arcbox_agent import files
from arcboxd import aio
from arcboxd.link.call import WARM_UP
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_agent.cgroup import Cgroups
    from arcbox_agent.kernel import Kernel
    from arcbox_agent.warm_up import WarmUp

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_PRODUCT_UUID = "/sys/class/dmi/id/product_uuid"
_FOLDER = "run/arcbox"
_LATER_S = 0.1
_LATEST_S = 1.0
_ALONE_S = 60.0  # the daemon did not say when, and perhaps is no more
_UUID4_VERSION, _UUID4_VARIANT = 0x40, 0x80

_log = logging.getLogger(__name__)


class Clone:
    """Whether the system was settled, and what a clone of it still has to begin.

    Attributes:
        settled: The next Configure is a clone's.
        configured: What the last Configure asked for.
        calls: How many calls are being served that what begins should not disturb.
        fifo: Where init's unit waits for `begin`.
        warm_up: What another processor of a clone may run when the host greets.
    """

    def __init__(self, kernel: Kernel, cgroups: Cgroups, root: str) -> None:
        """Find out for the system whose files lie below `root`."""
        self.configured = guest_pb2.ConfigureRequest()
        self.calls = 0
        self.fifo = f"{root}/{_FOLDER}/clone"
        self._kernel = kernel
        self._cgroups = cgroups
        self._boot_id = f"{root}/{_FOLDER}/boot_id"
        self._product_uuid = f"{root}/{_FOLDER}/product_uuid"
        self._marker = f"{root}/{_FOLDER}/settled"
        self._waiting: list[Callable[[], object]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._latest = 0.0
        self._starting: set[asyncio.Task[None]] = set()
        self.warm_up: WarmUp | None = None
        self.settled = os.path.exists(self._marker)

    # For the template

    def settle(self, services: list[str]) -> None:
        """Note that the system was settled, and which services `begin` must start itself.

        What a clone changes of the kernel's files is covered here by files of our own: a mount in
        each clone would make its init look through all mounts.

        Raises:
            OSError: The kernel refused.
        """
        self._cover(_BOOT_ID, self._boot_id, 0o444)
        if os.path.exists(_PRODUCT_UUID):
            self._cover(_PRODUCT_UUID, self._product_uuid, 0o400)
        files.write(self._marker, "".join(f"{name}\n" for name in services))
        self.settled = True

    def poise(self) -> None:
        """Be ready for the freeze: in clones the agent is first in line, until `release`.

        When a clone's clock is set its init wakes, and would be given the agent's processor, or
        that of what warms up, for as long as either takes.
        """
        try:
            if self.warm_up is not None:
                self.warm_up.go_first(self._kernel)
            self._kernel.go_first(wanted=True)
        except OSError as error:
            _log.warning("the agent cannot be first in line: %s", error)

    def _cover(self, path: str, own: str, mode: int) -> None:
        if not os.path.exists(own):
            files.write(own, files.read(path), mode=mode)
            self._kernel.bind(own, path)

    # For the clone

    def greeted(self, hello: bytes) -> None:
        """Have another processor warm up beside all that comes, if that is what the host says."""
        if hello == WARM_UP and self.warm_up is not None:
            self.warm_up.begin()

    def identify(self, machine_id: str) -> None:
        """Give this machine a boot id of its own, and its machine id as the firmware's UUID.

        After entropy was added: until then every clone draws the same numbers.

        Raises:
            OSError: A file cannot be written.
        """
        drawn = bytearray(os.urandom(16))
        drawn[6] = drawn[6] & 0x0F | _UUID4_VERSION
        drawn[8] = drawn[8] & 0x3F | _UUID4_VARIANT
        files.overwrite(self._boot_id, _uuid(drawn.hex()))
        if machine_id and os.path.exists(self._product_uuid):
            files.overwrite(self._product_uuid, _uuid(machine_id))

    def boot_id(self) -> str:
        """Say which boot this is."""
        return (files.read(self._boot_id) or files.read(_BOOT_ID)).strip()

    def begin_later(self, *also: Callable[[], object]) -> None:
        """End the settled state; what waits begins when the daemon says so, or by itself at last.

        What begins takes more of the processor than all that a clone did before it.

        Args:
            also: What to call then, too.
        """
        self.settled = False
        self._waiting += also
        self._timer = asyncio.get_running_loop().call_later(_ALONE_S, self.begin)

    def begin_soon(self) -> None:
        """Begin now, or at the end of a command that runs, if that is within a second."""
        if self._timer is not None:
            self._timer.cancel()
            self._latest = asyncio.get_running_loop().time() + _LATEST_S
            self._begin_if_idle()

    def _begin_if_idle(self) -> None:
        loop = asyncio.get_running_loop()
        if self.calls and loop.time() < self._latest:
            self._timer = loop.call_later(_LATER_S, self._begin_if_idle)
        else:
            self.begin()

    def begin(self) -> None:
        """Let the services begin that wait for this machine's identity. Idempotent."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        self.release()
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each()

    def release(self) -> None:
        """Let what was held go on, whatever the state: also after a Settle that failed."""
        self.settled = False
        if self.warm_up is not None:
            self.warm_up.end(self._cgroups)
            self.warm_up = None
        self._kernel.go_first(wanted=False)
        write_line(self.fifo)
        for service in files.read(self._marker).split():
            task = aio.spawn(self._start(service), name=f"start of {service}")
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)
        try:
            os.unlink(self._marker)
        except FileNotFoundError:
            _log.debug("nothing was settled")

    async def _start(self, service: str) -> None:
        from arcbox_agent.programs import run

        code, text = await run("rc-service", service, "start", cgroups=self._cgroups)
        if code != 0:
            _log.warning("cannot start %s: %s", service, text.strip())


def _uuid(digits: str) -> str:
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return "-".join(parts) + "\n"


def write_line(fifo: str) -> None:
    """Let whoever reads a line from a FIFO go on; without a reader nothing happens."""
    try:
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(fd, b"go\n")
    except BrokenPipeError:  # it has just stopped waiting
        return
    finally:
        os.close(fd)
