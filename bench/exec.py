"""What a running machine answers: a ping, and a process."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

from bench.figures import Figure, Wanted
from bench.host import Host, rounds, timed
from bench.machines import clone, output_of, prepare

TIMES = 5
CALLS = 30
"""Each sample is the median of so many."""


class _Round(NamedTuple):
    ping: float
    true: float


def run(host: Host) -> list[Figure]:
    """Alternate the floor with calls one after the other to a machine that has nothing to do."""
    with host.daemon() as client:
        prepare(client)
        with clone(client, "one"):

            def one(_: int) -> _Round:
                return _Round(
                    p50(lambda: client.ping("one"), CALLS),
                    p50(lambda: output_of(client, "one", "true"), CALLS),
                )

            # What runs for the first time is translated under emulation; that is of the warm start.
            one(0)
            floors, took = rounds(host.floor, TIMES, one)
    beside = tuple(floors)
    return [
        Figure("ping", "Ping, p50", "s", tuple(r.ping for r in took), beside, wanted=Wanted(0.01)),
        Figure(
            "true",
            "Exec of true, p50",
            "s",
            tuple(r.true for r in took),
            beside,
            wanted=Wanted(0.06),
        ),
    ]


def p50(call: Callable[[], object], times: int) -> float:
    """Give the median of many calls, in seconds."""
    return statistics.median(timed(call) for _ in range(times))
