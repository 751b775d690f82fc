"""The forwards of one machine: what is wanted, what is open, and the task that makes them equal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from arcboxd import aio
from arcboxd.domain.ports import Port, PortState, UserForward
from arcboxd.errors import ArcboxError, HypervisorError, NoRoomError
from arcboxd.hypervisor.base import Forward, Vm
from arcboxd.ports.datagrams import UdpRelay
from arcboxd.ports.holders import Holders
from arcboxd.ports.plan import Wanted, asked, overlap
from arcboxd.ports.relay import OpenStream, Slots, TcpRelay
from arcboxd.ports.sockets import probe, taken

_log = logging.getLogger(__name__)

MAX_FORWARDS = 1000
"""Of one machine, those of its containers and the user's own together."""
_MAX_STREAMS = 512
_RETRY_S = 2.0
_RETRY_MOST_S = 15.0
_BACKOFF = 1.5
USER = "user"
"""The source of the user's own forwards; others name their container."""


@dataclass(slots=True, eq=False)
class _Entry:
    owner: str | None
    """A container's id, or what the host follows by itself; None: the user."""
    source: str
    wanted: Wanted
    state: PortState = PortState.WAITING
    detail: str = ""
    opened: Forward | TcpRelay | UdpRelay | None = None
    dropped: bool = False
    """It is wanted no more, and goes once it is closed."""
    due_s: float = 0.0
    delay_s: float = 0.0

    @property
    def pending(self) -> bool:
        return self.opened is None or self.dropped

    def postpone(self, now_s: float) -> None:
        self.delay_s = min(max(_RETRY_S, self.delay_s * _BACKOFF), _RETRY_MOST_S)
        self.due_s = now_s + self.delay_s


@dataclass(frozen=True, slots=True)
class _Line:
    """How a machine that runs is reached."""

    vm: Vm
    open_stream: OpenStream
    kept: Forward
    """The hypervisor's forward that is not ours to touch: SSH's."""
    slots: Slots


class Forwards:
    """Keeps one machine's forwards as they are wanted.

    What is wanted changes at once and never waits; a task of its own opens and closes, one thing
    after another, and tries again what could not be done.
    """

    def __init__(
        self,
        name: str,
        holders: Holders,
        report: Callable[[Port], None],
        who_else: Callable[[Wanted], str],
    ) -> None:
        """Want nothing.

        Args:
            name: The machine's.
            holders: Who has which port.
            report: Called when a forward's state changes.
            who_else: Names who has a port that is not in `holders`; empty: not known.
        """
        self._name = name
        self._holders = holders
        self._report = report
        self._who_else = who_else
        self._entries: list[_Entry] = []
        self._task: asyncio.Task[None] | None = None
        self._kicked = asyncio.Event()
        self._idle = asyncio.Event()
        self._strays: set[Forward] | None = None
        """Forwards that the hypervisor has of an earlier daemon; None until it was asked."""
        self._synced = False
        self._full = False
        self.lock = asyncio.Lock()
        """Held while the user's own are loaded or changed."""
        self.user: tuple[UserForward, ...] | None = None
        """The user's own; None: not loaded yet."""

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(not entry.dropped for entry in self._entries)

    def ports(self) -> list[Port]:
        """Show them, the user's own first."""
        shown = [entry for entry in self._entries if not entry.dropped]
        shown.sort(key=lambda entry: (entry.owner is not None, entry.source))
        return [self._port(entry) for entry in shown]

    # --- what is wanted -------------------------------------------------------------------------

    def set_user(self, forwards: Iterable[UserForward]) -> None:
        """Replace the user's own forwards."""
        self.user = tuple(forwards)
        self._replace(None, USER, [asked(forward) for forward in self.user])

    def publish(self, container_id: str, source: str, wanted: Sequence[Wanted]) -> None:
        """Replace a container's forwards, as many of them as there is room for."""
        owned = sum(e.owner == container_id and not e.dropped for e in self._entries)
        room = MAX_FORWARDS - self.count + owned
        if len(wanted) > room and not self._full:
            self._full = True
            _log.warning(
                "machine %s publishes more ports than the %d that it may have forwarded",
                *(self._name, MAX_FORWARDS),
            )
        self._replace(container_id, source, wanted[:room])

    def withdraw(self, container_id: str) -> None:
        """Close a container's forwards."""
        self._replace(container_id, "", ())

    def owners(self) -> frozenset[str]:
        """Tell whose the forwards are, beside the user's own."""
        return frozenset(entry.owner for entry in self._entries if entry.owner is not None)

    def synced(self, told: frozenset[str]) -> None:
        """Close the forwards of all owners but those ``told``, and what nobody has asked for.

        So it is after a new session with the guest, or by a new daemon.
        """
        for owner in self.owners() - told:
            self.withdraw(owner)
        self._synced = True
        self._kick()

    def freed(self, wanted: Wanted) -> None:
        """Try again at once what waits for a port that is free now."""
        for entry in self._entries:
            if entry.state is PortState.TAKEN and (
                (entry.wanted.protocol, entry.wanted.host_port)
                == (wanted.protocol, wanted.host_port)
            ):
                entry.due_s = entry.delay_s = 0.0
                self._kick()

    def _replace(self, owner: str | None, source: str, wanted: Sequence[Wanted]) -> None:
        missing = dict.fromkeys(wanted)
        for entry in tuple(self._entries):
            if entry.owner != owner or entry.dropped:
                continue
            if entry.wanted in missing:
                del missing[entry.wanted]
                entry.source = source
            elif self._task is None:
                self._entries.remove(entry)
            else:
                # Though it may not be open: the task may be about to open it.
                entry.dropped, entry.due_s = True, 0.0
        self._entries += [_Entry(owner, source, each) for each in missing]
        self._kick()

    # --- while the machine runs -----------------------------------------------------------------

    def attach(self, vm: Vm, open_stream: OpenStream, kept: Forward) -> None:
        """Begin to open what is wanted: the machine runs."""
        line = _Line(vm, open_stream, kept, Slots(_MAX_STREAMS))
        self._strays, self._synced = None, False
        self._kick()
        self._task = aio.spawn(self._work(line), name=f"forwards of {self._name}")

    async def detach(self) -> None:
        """End all: the machine runs no more, or is not this daemon's any more. Idempotent."""
        if self._task is None:
            return
        await aio.cancel(self._task)
        for entry in tuple(self._entries):
            await self._closed(entry)
            if entry.dropped or entry.owner is not None:
                self._forget(entry)
            else:
                entry.due_s = entry.delay_s = 0.0
                self._set(entry, PortState.WAITING)
        self._task = None
        self._entries = [entry for entry in self._entries if not entry.dropped]
        self._idle.set()

    async def settled(self, timeout_s: float) -> None:
        """Return when all that can be done was done, or the time is over."""
        if self._task is not None:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
            except TimeoutError:
                _log.warning("the forwards of %s are not settled yet", self._name)

    def _kick(self) -> None:
        self._idle.clear()
        self._kicked.set()

    async def _work(self, line: _Line) -> None:
        now_s = asyncio.get_running_loop().time
        while True:
            self._kicked.clear()
            if self._strays is None:
                await self._look(line)
            for entry in tuple(self._entries):
                if entry.dropped and entry.due_s <= now_s():
                    await self._close(line, entry)
            for entry in tuple(self._entries):
                if entry.opened is None and not entry.dropped and entry.due_s <= now_s():
                    await self._open(line, entry)
                if self._kicked.is_set():
                    break  # there may be something to close first
            if self._kicked.is_set():
                continue
            await self._tidy(line)
            if not self._kicked.is_set():
                self._idle.set()
                await self._wait(now_s())

    async def _wait(self, now_s: float) -> None:
        due = [entry.due_s for entry in self._entries if entry.pending]
        if self._strays is None or (self._synced and self._strays):
            due.append(now_s + _RETRY_MOST_S)
        try:
            async with asyncio.timeout_at(min(due, default=None)):
                await self._kicked.wait()
        except TimeoutError:
            return

    async def _look(self, line: _Line) -> None:
        """See what forwards the hypervisor has: an earlier daemon's, in a machine taken over."""
        try:
            self._strays = set(await line.vm.forwards()) - {line.kept}
        except HypervisorError as error:
            _log.warning("the forwards of %s are not known: %s", self._name, error)

    async def _tidy(self, line: _Line) -> None:
        """Close what an earlier daemon has opened and nobody wants any more."""
        if not self._synced:
            return
        for forward in tuple(self._strays or ()):
            try:
                await line.vm.remove_forward(forward)
            except HypervisorError as error:
                _log.warning("%s of %s is not closed: %s", forward, self._name, error)
                return
            self._drop_stray(forward)

    async def _open(self, line: _Line, entry: _Entry) -> None:
        wanted = entry.wanted
        try:
            if by := self._holders.who(wanted):
                raise taken(wanted, by)
            opened = await self._opened(line, wanted)
        except NoRoomError as error:
            by = by or self._who_else(wanted)
            self._postponed(entry, PortState.TAKEN, taken(wanted, by) if by else error)
        except ArcboxError as error:
            self._postponed(entry, PortState.FAILED, error)
        else:
            entry.opened, entry.delay_s = opened, 0.0
            self._holders.take(wanted, self._who(entry))
            self._set(entry, PortState.OPEN)

    async def _opened(self, line: _Line, wanted: Wanted) -> Forward | TcpRelay | UdpRelay:
        if (forward := wanted.direct) is None:
            kind = TcpRelay if wanted.protocol == "tcp" else UdpRelay
            relay = kind(wanted, line.open_stream, line.slots)
            await relay.open()
            return relay
        if self._strays is None:
            raise HypervisorError("the monitor does not answer")
        if forward in self._strays:
            self._strays.discard(forward)
            return forward
        for stray in tuple(self._strays):
            # In its place, but to another port of the guest.
            if (stray.protocol, stray.host_port) == (forward.protocol, forward.host_port) and (
                overlap(stray.host_address, forward.host_address)
            ):
                await line.vm.remove_forward(stray)
                self._drop_stray(stray)
        probe(wanted)
        await line.vm.add_forward(forward)
        return forward

    def _drop_stray(self, forward: Forward) -> None:
        if self._strays is not None:
            self._strays.discard(forward)

    async def _close(self, line: _Line, entry: _Entry) -> None:
        if isinstance(entry.opened, Forward):
            try:
                await line.vm.remove_forward(entry.opened)
            except HypervisorError as error:
                _log.warning("%s of %s is not closed: %s", entry.wanted, self._name, error)
                entry.postpone(asyncio.get_running_loop().time())
                return
        await self._closed(entry)
        self._forget(entry)

    async def _closed(self, entry: _Entry) -> None:
        """Note that an entry is closed, as far as the hypervisor has to do with it."""
        opened, entry.opened = entry.opened, None
        if opened is not None:
            if not isinstance(opened, Forward):
                await opened.close()
            self._holders.free(entry.wanted, self._who(entry))

    def _forget(self, entry: _Entry) -> None:
        if entry in self._entries:
            self._entries.remove(entry)
            self._set(entry, PortState.CLOSED)

    def _postponed(self, entry: _Entry, state: PortState, error: ArcboxError) -> None:
        detail = " - ".join(filter(None, (error.message, error.hint)))
        if (entry.state, entry.detail) != (state, detail):
            _log.warning("machine %s: %s", self._name, detail)
        entry.postpone(asyncio.get_running_loop().time())
        self._set(entry, state, detail)

    def _set(self, entry: _Entry, state: PortState, detail: str = "") -> None:
        if (entry.state, entry.detail) != (state, detail):
            entry.state, entry.detail = state, detail
            self._report(self._port(entry))

    def _who(self, entry: _Entry) -> str:
        return f"machine {self._name!r} ({entry.source})"

    def _port(self, entry: _Entry) -> Port:
        wanted = entry.wanted
        return Port(
            self._name,
            wanted.protocol,
            wanted.host_address,
            wanted.host_port,
            wanted.guest_address,
            wanted.guest_port,
            entry.source,
            entry.state,
            entry.detail,
        )
