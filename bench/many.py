"""Twenty clones at once, until the last of them has answered."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from arcboxd.client.client import Client
from arcboxd.settings import MIB
from bench.figures import Figure, Wanted
from bench.host import Host, rounds
from bench.machines import check_boot, clone, from_nothing, prepare

TIMES = 3
COUNT = 20


class _Round(NamedTuple):
    first: float
    last: float
    own_mib: float
    taken_mib: float


def run(host: Host) -> list[Figure]:
    """Alternate the floor with starting them all, and removing them."""
    with host.daemon() as client:
        prepare(client)
        with clone(client, "first"):
            pass
        floors, took = rounds(host.floor, TIMES, lambda i: _all_at_once(client, i))
    beside = tuple(floors)
    last = tuple(each.last for each in took)
    return [
        Figure(
            "all", f"{COUNT} clones, until all have run `true`", "s", last, beside,
            wanted=Wanted(3.0, ratio=True),
        ),
        Figure("first", "until the first has", "s", tuple(each.first for each in took), beside),
        Figure(
            "each", "all of them, by their number", "s",
            tuple(each / COUNT for each in last), beside,
        ),
        Figure("own", "own memory of each, mean", "MiB", tuple(each.own_mib for each in took)),
        Figure(
            "taken", "what each took of the host's free memory", "MiB",
            tuple(each.taken_mib for each in took),
        ),
    ]  # fmt: skip


def _all_at_once(client: Client, number: int) -> _Round:
    names = [f"many{number}-{i}" for i in range(COUNT)]
    free = client.usage().host_available_bytes
    began = time.perf_counter()

    def one(name: str) -> float:
        from_nothing(client, name)
        return time.perf_counter() - began

    with ThreadPoolExecutor(COUNT) as pool:
        try:
            answered = list(pool.map(one, names))
        except BaseException:
            # Or the pool would wait for all the others.
            client.close()
            raise
    usage = client.usage(names)
    for name in names:
        check_boot(client, name, "template")
        client.remove(name, force=True)
    own = sum(each.own_bytes for each in usage.machines) / COUNT
    taken = (free - usage.host_available_bytes) / COUNT
    return _Round(min(answered), max(answered), own / MIB, taken / MIB)
