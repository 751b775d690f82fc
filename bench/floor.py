"""The floor: the same kernel with a busybox init that says one word, nothing else."""

from __future__ import annotations

from bench.figures import Figure
from bench.host import Host, rounds

TIMES = 5


def run(host: Host) -> list[Figure]:
    """Compare the kernel as anyone would boot it with the kernel as we boot it."""
    plain, ours = rounds(host.floor, TIMES, lambda _: host.floor.s(our_options=True))
    return [
        Figure("floor", "bare kernel to its init, no options of ours (F)", "s", tuple(plain)),
        Figure(
            "floor_ours", "the same with our kernel options", "s", tuple(ours), beside=tuple(plain)
        ),
    ]
