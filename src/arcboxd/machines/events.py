"""What happens to machines, told to whoever watches, in order and at bounded cost."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from arcboxd.domain.ports import Port

QUEUE_LIMIT = 1024
"""Events kept for one subscriber that does not read; then it loses the oldest."""


@dataclass(frozen=True, slots=True)
class StateChanged:
    """A machine is in another state; ``removed`` when it is gone."""

    state: str
    detail: str


@dataclass(frozen=True, slots=True)
class Progress:
    """A step of something long goes on."""

    step: str
    done: int
    total: int
    finished: bool


@dataclass(frozen=True, slots=True)
class PortChanged:
    """A forward is in another state; ``closed`` when it is gone."""

    port: Port


@dataclass(frozen=True, slots=True)
class Lost:
    """The subscriber was too slow, and this many events before the next were dropped."""

    count: int


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; the sequence number never repeats in one daemon."""

    sequence: int
    unix_ns: int
    subject: str
    what: StateChanged | Progress | PortChanged | Lost


class Subscription:
    """One subscriber's queue: an asynchronous iterator that never ends by itself."""

    def __init__(self, subject: str, limit: int) -> None:
        """Take events of one subject, or of all if it is empty."""
        self._subject = subject
        self._queue: deque[Event] = deque()
        self._limit = limit
        self._lost = 0
        self._filled = asyncio.Event()

    def __aiter__(self) -> Subscription:
        """Give itself."""
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event; a `Lost` one tells what was dropped before it."""
        while not self._queue:
            self._filled.clear()
            await self._filled.wait()
        if self._lost:
            first, count = self._queue[0], self._lost
            self._lost = 0
            return Event(first.sequence - 1, first.unix_ns, self._subject, Lost(count))
        return self._queue.popleft()

    def offer(self, event: Event) -> None:
        """Queue an event, at the cost of the oldest when the queue is full."""
        if self._subject and event.subject != self._subject:
            return
        if len(self._queue) >= self._limit:
            self._queue.popleft()
            self._lost += 1
        self._queue.append(event)
        self._filled.set()


class EventBus:
    """Numbers events and hands them to every subscriber. Publishing never waits."""

    def __init__(self, limit: int = QUEUE_LIMIT) -> None:
        """Keep at most ``limit`` events a subscriber."""
        self._limit = limit
        self._sequence = 0
        self._subscriptions: set[Subscription] = set()

    @contextmanager
    def subscribe(self, subject: str = "") -> Iterator[Subscription]:
        """Take part from now on, until the context ends."""
        subscription = Subscription(subject, self._limit)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def state(self, subject: str, state: str, detail: str) -> None:
        """Tell that a machine is in another state."""
        self._publish(subject, StateChanged(state, detail))

    def progress(
        self, subject: str, step: str, done: int, total: int, *, finished: bool = False
    ) -> None:
        """Tell how far a step is."""
        self._publish(subject, Progress(step, done, total, finished))

    def port(self, port: Port) -> None:
        """Tell that a forward is in another state."""
        self._publish(port.machine, PortChanged(port))

    def _publish(self, subject: str, what: StateChanged | Progress | PortChanged) -> None:
        self._sequence += 1
        event = Event(self._sequence, time.time_ns(), subject, what)
        for subscription in self._subscriptions:
            subscription.offer(event)
