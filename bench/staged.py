"""A warm start that a staged clone waits for: restored already, and paused."""

from __future__ import annotations

from bench import warm
from bench.figures import Figure, Wanted
from bench.host import Host, rounds
from bench.machines import Start, clone, from_nothing, prepare, wait_staged

STAGED = 2


def run(host: Host) -> list[Figure]:
    """Alternate the floor and a start of a machine for which a clone stands ready."""
    with host.daemon(staged_clones=STAGED) as client:
        prepare(client)
        # The template that was used last is the one whose clones are staged.
        from_nothing(client, "first")
        client.remove("first", force=True)
        wait_staged(client, STAGED)

        def one(i: int) -> Start:
            # Full again: what is staged meanwhile is only what replaces the one that is taken.
            wait_staged(client, STAGED)
            with clone(client, f"staged{i}", staged=True) as took:
                return took

        floors, starts = rounds(host.floor, warm.TIMES, one)
    return warm.figures(floors, starts, Wanted(0.1, ratio=True))
