"""A warm start: a machine that goes on from a template, in which systemd is fully up."""

from __future__ import annotations

from collections.abc import Sequence

from bench.figures import Figure, Wanted
from bench.host import Host, rounds
from bench.machines import Start, clone, output_of, prepare

TIMES = 7


def run(host: Host) -> list[Figure]:
    """Alternate the floor and a warm start."""
    with host.daemon() as client:
        prepare(client)
        # The first one brings the template's files into the host's memory, and shows what it is.
        with clone(client, "first"):
            state = output_of(client, "first", "sh", "-c", "systemctl is-system-running || true")
        assert state.strip() in {"running", "degraded"}, f"systemd is not up in the clone: {state}"

        def one(i: int) -> Start:
            with clone(client, f"warm{i}") as took:
                return took

        floors, starts = rounds(host.floor, TIMES, one)
    return figures(floors, starts, Wanted(0.2, aim=0.1, ratio=True))


def figures(floors: Sequence[float], starts: Sequence[Start], wanted: Wanted) -> list[Figure]:
    """Give the whole way from nothing to an answer, and its parts."""
    beside = tuple(floors)
    total = tuple(each.total for each in starts)
    parts = zip(
        Start._fields,
        ("of which create", "of which start", "of which `true`"),
        zip(*starts, strict=True),
        strict=True,
    )
    return [
        Figure("total", "create, start and `true`", "s", total, beside, wanted=wanted),
        *(Figure(key, what, "s", tuple(samples), beside) for key, what, samples in parts),
    ]
