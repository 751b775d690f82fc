"""The memory that a clone takes right after its start, beside that of a machine that booted.

Own memory is what the host gets back when the process ends: pages that no other process maps. The
template's pages are mapped by every clone, and would be counted as own if there were only one, so
another clone runs beside those that are measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from arcboxd.client.client import Client
from arcboxd.settings import MIB
from bench.figures import Figure, Wanted
from bench.host import Host
from bench.machines import check_boot, clone, from_nothing, prepare, smaps

TIMES = 5
LIMIT_MIB = 60.0
_NO_TEMPLATE = "bench.cold=1"
"""A kernel parameter that means nothing, and that no template has."""


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Of one process, in MiB."""

    own: float
    """As the daemon tells it."""
    pss_not_shared: float
    """As the kernel does: its proportional share, without what it shares."""
    pss: float
    huge: float
    """Of its own, in huge pages, of which it may use little."""


def run(host: Host) -> list[Figure]:
    """Alternate a machine that boots, and is removed again, with a clone, which stays."""
    with host.daemon() as client:
        prepare(client)
        booted, clones = [], []
        with clone(client, "beside"):
            for i in range(TIMES):
                booted.append(_measure(client, f"cold{i}", cold=True))
                client.remove(f"cold{i}", force=True)
                clones.append(_measure(client, f"clone{i}", cold=False))
    own = tuple(each.own for each in clones)
    beside = tuple(each.own for each in booted)
    return [
        Figure("cold", "own memory of a machine that booted (B)", "MiB", beside),
        Figure("own", "own memory of a clone, by the daemon", "MiB", own, beside, base="B"),
        Figure(
            "kernel",
            "the same by the kernel: PSS less what is shared",
            "MiB",
            tuple(each.pss_not_shared for each in clones),
            beside,
            base="B",
        ),
        Figure("most", "the largest of them", "MiB", (max(own),), wanted=Wanted(LIMIT_MIB)),
        Figure("pss", "PSS of a clone", "MiB", tuple(each.pss for each in clones)),
        Figure("huge", "of it in huge pages", "MiB", tuple(each.huge for each in clones)),
    ]


def _measure(client: Client, name: str, *, cold: bool) -> _Sizes:
    from_nothing(client, name, cmdline=_NO_TEMPLATE if cold else "")
    own = client.usage([name]).machines[0].own_bytes
    kernel = smaps(client, name)
    check_boot(client, name, "cold" if cold else "template")
    alone = kernel["Private_Clean"] + kernel["Private_Dirty"]
    return _Sizes(own / MIB, alone / MIB, kernel["Pss"] / MIB, kernel["AnonHugePages"] / MIB)
