"""A cold start: kernel, agent and the distribution's init, nothing saved from before."""

from __future__ import annotations

from bench.figures import Figure, Wanted
from bench.host import Host, rounds
from bench.machines import Start, check_boot, create, from_nothing

TIMES = 5


def run(host: Host) -> list[Figure]:
    """Alternate the floor, with our options too, and a cold start."""
    lower: list[float] = []
    with host.daemon(templates="off") as client:
        # Builds, that once, what is missing in the cache.
        create(client, "first")

        def one(i: int) -> Start:
            lower.append(host.floor.s(our_options=True))
            took = from_nothing(client, f"cold{i}")
            check_boot(client, f"cold{i}", "cold")
            client.remove(f"cold{i}", force=True)
            return took

        floors, starts = rounds(host.floor, TIMES, one)
    start = tuple(each.start for each in starts)
    total = tuple(each.total for each in starts)
    most = Wanted(2.0, ratio=True)
    return [
        Figure("start", "Start, until the agent answers", "s", start, tuple(floors), wanted=most),
        Figure(
            "start_ours",
            "the same against the kernel with our options (O)",
            "s",
            start,
            tuple(lower),
            base="O",
        ),
        Figure("total", "create, start and `true`", "s", total, tuple(floors)),
    ]
