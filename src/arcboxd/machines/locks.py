"""One operation a machine at a time; a second is told so at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from arcboxd.domain.machine import Machine
from arcboxd.errors import MachineBusyError, MachineStateError

ADOPT = "adopt"
"""To take over what an earlier daemon left."""
NOTE_END = "end"
"""To record that a machine ended by itself."""
_OWN = frozenset({ADOPT, NOTE_END})
"""Operations that others wait for: no user asked for them, and they are short."""


class Operation:
    """What holds a machine right now."""

    def __init__(self, verb: str) -> None:
        """Name it by its verb."""
        self.verb = verb
        self._done = asyncio.Event()
        self._task: asyncio.Task[object] | None = None
        self._aborted_by = ""

    @asynccontextmanager
    async def abortable(self, name: str) -> AsyncIterator[None]:
        """Let `abort` interrupt the block, which then raises `MachineStateError`.

        Interrupts as `asyncio.timeout` does: by a cancellation that is told from a caller's own.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a coroutine runs in a task")
        before = task.cancelling()
        self._task = task
        try:
            yield
        except asyncio.CancelledError:
            if self._aborted_by and task.uncancel() <= before:
                raise MachineStateError(
                    f"machine {name!r} was ended by {self._aborted_by} during its {self.verb}"
                ) from None
            raise
        finally:
            self._task = None

    def abort(self, by: str) -> bool:
        """Interrupt it, if it can be and was not already; tell whether it can."""
        if self._task is None:
            return bool(self._aborted_by)
        if not self._aborted_by:
            self._aborted_by = by
            self._task.cancel()
        return True

    async def wait(self) -> None:
        """Return once the machine is let go."""
        await self._done.wait()

    def finish(self) -> None:
        """Wake whoever waits."""
        self._done.set()


class Locks:
    """Tells which operation holds which machine."""

    def __init__(self) -> None:
        """Hold none."""
        self._held: dict[str, Operation] = {}

    def current(self, machine_id: str) -> Operation | None:
        """Give the operation that holds a machine."""
        return self._held.get(machine_id)

    @contextmanager
    def hold(self, machine: Machine, verb: str) -> Iterator[Operation]:
        """Hold a machine.

        Raises:
            MachineBusyError: Another operation does.
        """
        if (other := self._held.get(machine.id)) is not None:
            raise MachineBusyError(
                f"machine {machine.spec.name!r} is busy: its {other.verb} is under way",
                hint="try again when that is done",
            )
        operation = self._held[machine.id] = Operation(verb)
        try:
            yield operation
        finally:
            del self._held[machine.id]
            operation.finish()

    async def settled(self, machine_id: str) -> None:
        """Wait while the daemon holds a machine on its own account, but for no user's operation."""
        while (other := self._held.get(machine_id)) is not None and other.verb in _OWN:
            await other.wait()

    async def all_free(self) -> None:
        """Wait until nothing holds any machine."""
        while self._held:
            await next(iter(self._held.values())).wait()

    def count(self, verb: str) -> int:
        """Count the machines that are held for one kind of operation."""
        return sum(each.verb == verb for each in self._held.values())

    async def free_of(self, verb: str) -> None:
        """Wait until no machine is held for one kind of operation."""
        while held := [each for each in self._held.values() if each.verb == verb]:
            await held[0].wait()

    async def free(self, machine_id: str) -> None:
        """Wait until nothing holds a machine."""
        while (other := self._held.get(machine_id)) is not None:
            await other.wait()
