"""The forwards of all machines."""

from __future__ import annotations

from collections.abc import Callable

from arcboxd.domain.ports import Port
from arcboxd.ports.forwards import Forwards
from arcboxd.ports.holders import Holders
from arcboxd.ports.plan import Wanted


class PortTable:
    """Each machine's forwards, made when they are first asked for."""

    def __init__(self, report: Callable[[Port], None], who_else: Callable[[Wanted], str]) -> None:
        """Have none.

        Args:
            report: Called when a forward's state changes.
            who_else: Names who has a port that no forward of ours has; empty: not known.
        """
        self._report = report
        self._who_else = who_else
        self._holders = Holders()
        self._holders.on_free = self._freed
        self._machines: dict[str, Forwards] = {}

    def of(self, machine_id: str, name: str) -> Forwards:
        """Give a machine's forwards."""
        if (found := self._machines.get(machine_id)) is None:
            found = Forwards(name, self._holders, self._report, self._who_else)
            self._machines[machine_id] = found
        return found

    def user_ports(self) -> set[int]:
        """Give the host's ports of all forwards of the user's own, as far as they are loaded."""
        return {
            each.host_port for forwards in self._machines.values() for each in forwards.user or ()
        }

    async def detach(self, machine_id: str) -> None:
        """Let go of a machine that runs no more, or not for this daemon. Idempotent."""
        if (found := self._machines.get(machine_id)) is not None:
            await found.detach()

    async def forget(self, machine_id: str) -> None:
        """Forget a machine that is removed. Idempotent."""
        await self.detach(machine_id)
        self._machines.pop(machine_id, None)

    async def close(self) -> None:
        """Let go of all. Idempotent."""
        for machine_id in tuple(self._machines):
            await self.detach(machine_id)

    def _freed(self, wanted: Wanted) -> None:
        for forwards in self._machines.values():
            forwards.freed(wanted)
