"""Every machine, in memory for reading and in a store for keeping."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, TypedDict, Unpack

from arcboxd.aio import complete
from arcboxd.domain.machine import (
    Boot,
    Machine,
    MachineSpec,
    MachineState,
    ProcessIdentity,
    check_transition,
)
from arcboxd.errors import (
    ArcboxError,
    InvalidArgumentError,
    MachineExistsError,
    MachineNotFoundError,
)
from arcboxd.machines.events import EventBus

MIN_PREFIX = 4
"""Digits of an id's prefix; fewer would soon stop being unique."""
DETAIL_LIMIT = 2000
"""Characters kept of why something failed."""


class Store(Protocol):
    """Keeps records; calls take effect in the order they are made, even of cancelled callers."""

    async def load(self) -> list[Machine]:
        """Give every record, oldest first."""
        ...

    async def put(self, machine: Machine) -> None:
        """Write a record durably."""
        ...

    async def delete(self, machine_id: str) -> None:
        """Erase a record."""
        ...


class Changes(TypedDict, total=False):
    """What may change in a record besides its state."""

    spec: MachineSpec
    image_key: str
    ssh_port: int
    started_unix_ns: int
    process: ProcessIdentity | None
    accelerator: str
    kernel_version: str
    boot: Boot | None
    boot_reason: str
    detail: str


class Registry:
    """Finds and changes machines. Reading does no I/O, and shows only what is durable.

    A change that was begun is completed though its caller is cancelled, so that memory and store
    never differ. A new name is taken before it is durable: two requests for it cannot both pass.
    Whoever changes a machine holds its lock.
    """

    def __init__(self, store: Store, events: EventBus) -> None:
        """Know nothing yet; `load` does."""
        self._store = store
        self._events = events
        self._machines: dict[str, Machine] = {}
        self._ids: dict[str, str] = {}

    async def load(self) -> None:
        """Read every record.

        Raises:
            StoreError: The store cannot be read.
        """
        for machine in await self._store.load():
            self._machines[machine.id] = machine
            self._ids[machine.spec.name] = machine.id

    def all(self) -> tuple[Machine, ...]:
        """Give every machine, oldest first."""
        return tuple(self._machines.values())

    def get(self, machine_id: str) -> Machine:
        """Give the machine with exactly this id.

        Raises:
            MachineNotFoundError: It is gone.
        """
        if (machine := self._machines.get(machine_id)) is None:
            raise _not_found(machine_id)
        return machine

    def find(self, ref: str) -> Machine:
        """Give the machine that an id, a name or a unique prefix of an id names, in this order.

        Raises:
            InvalidArgumentError: The reference is empty, or a prefix of several ids.
            MachineNotFoundError: It names none.
        """
        if not ref:
            raise InvalidArgumentError("no machine was named", hint="give an id or a name")
        if (machine := self._machines.get(ref)) is not None:
            return machine
        if (machine_id := self._ids.get(ref)) is not None:
            return self._machines[machine_id]
        if len(ref) < MIN_PREFIX:
            raise _not_found(ref)
        found = [m for machine_id, m in self._machines.items() if machine_id.startswith(ref)]
        if len(found) > 1:
            names = ", ".join(sorted(m.spec.name for m in found)[:5])
            raise InvalidArgumentError(
                f"{ref!r} is the beginning of {len(found)} machines' ids: {names}",
                hint="give more digits, or the name",
            )
        if not found:
            raise _not_found(ref)
        return found[0]

    def check_free(self, name: str) -> None:
        """Refuse a name that is taken.

        Raises:
            MachineExistsError: It is.
        """
        if name in self._ids:
            raise MachineExistsError(
                f"a machine named {name!r} exists already",
                hint=f"choose another name, or remove it with: arcbox rm {name}",
            )

    async def add(self, machine: Machine) -> None:
        """Record a new machine.

        Raises:
            MachineExistsError: The name is taken.
            StoreError: It was not recorded.
        """
        self.check_free(machine.spec.name)
        self._machines[machine.id] = machine
        self._ids[machine.spec.name] = machine.id
        try:
            await complete(self._store.put(machine))
        except ArcboxError:
            self._forget(machine)
            raise
        self._announce(machine)

    async def change(self, machine_id: str, **changes: Unpack[Changes]) -> Machine:
        """Change a record, but not its state.

        Raises:
            StoreError: It was not recorded.
        """
        before = self.get(machine_id)
        return await self._replace(replace(before, **_clipped(changes)))

    async def move(
        self, machine_id: str, state: MachineState, **changes: Unpack[Changes]
    ) -> Machine:
        """Move a machine to another state, and tell whoever watches.

        Raises:
            MachineStateError: Its state cannot become that.
            StoreError: It was not recorded.
        """
        before = self.get(machine_id)
        check_transition(before.spec.name, before.state, state)
        after = await self._replace(replace(before, state=state, **_clipped(changes)))
        self._announce(after)
        return after

    async def erase(self, machine_id: str) -> None:
        """Forget a machine whose files are gone.

        Raises:
            StoreError: It was not erased; it is there still.
        """
        machine = self.get(machine_id)

        async def forget() -> None:
            await self._store.delete(machine_id)
            self._forget(machine)

        await complete(forget())
        self._events.state(machine.spec.name, "removed", "")

    async def _replace(self, after: Machine) -> Machine:
        async def keep() -> None:
            await self._store.put(after)
            self._machines[after.id] = after

        await complete(keep())
        return after

    def _forget(self, machine: Machine) -> None:
        del self._machines[machine.id]
        del self._ids[machine.spec.name]

    def _announce(self, machine: Machine) -> None:
        self._events.state(machine.spec.name, machine.state.value, machine.detail)


def _clipped(changes: Changes) -> Changes:
    if "detail" in changes:
        changes["detail"] = changes["detail"][:DETAIL_LIMIT]
    return changes


def _not_found(ref: str) -> MachineNotFoundError:
    return MachineNotFoundError(
        f"there is no machine {ref[:80]!r}", hint="see them all with: arcbox ls --all"
    )
