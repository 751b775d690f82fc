"""Clones in a row, each asked who it is and what time it has: no two may say the same."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from arcboxd.client.client import Client
from arcboxd.domain.guest import ExecData, ExecSpec, StdinData
from bench.figures import Figure, Wanted
from bench.host import Host
from bench.machines import from_nothing, output_of, prepare

COUNT = int(os.environ.get("BENCH_CLONES", "100"))
"""How many."""
FLOOR_EVERY = 20
CLOCK_LIMIT_S = 0.05
READINGS = 4
"""Of each clock; the first one takes long, since all of it runs for the first time."""

# The random bytes come first: they are to be the first that anyone draws in that clone.
_WHO = """
set -e
head -c 16 /dev/urandom | od -An -v -tx1 | tr -d ' \\n'; echo
cat /etc/machine-id
cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub
cat /sys/class/net/e*/address
cat /proc/sys/kernel/random/boot_id
"""
_FIELDS = ("first random bytes", "machine-id", "SSH host key", "MAC address", "boot id")
# No program is started between question and answer: the time of the link alone is in between.
_CLOCK = ("bash", "-c", "while read -r; do echo $EPOCHREALTIME; done")


@dataclass(frozen=True, slots=True)
class Reading:
    """A guest's clock, read between two readings of the host's. All in ns since the epoch."""

    before: int
    guest: int
    after: int

    @property
    def off_s(self) -> float:
        """Tell by how much the guest's clock is off at least, in seconds."""
        return max(0, self.before - self.guest, self.guest - self.after) / 1e9

    @property
    def off_at_most_s(self) -> float:
        """Tell by how much it may be off, in seconds, with the time that the reading took."""
        return max(abs(self.guest - self.before), abs(self.guest - self.after)) / 1e9


@dataclass(frozen=True, slots=True)
class Answers:
    """What one clone said."""

    total_s: float
    floor_s: float
    """The floor's latest time."""
    boot: str
    who: tuple[str, ...]
    """In the order of `_FIELDS`."""
    readings: tuple[Reading, ...]


def run(host: Host) -> list[Figure]:
    """Start one after the other; each is removed before the next one."""
    with host.daemon() as client:
        prepare(client)
        answers: list[Answers] = []
        floor_s = 0.0
        for i in range(COUNT):
            if i % FLOOR_EVERY == 0:
                sys.stderr.write(f"bench: {i} of {COUNT} clones\n")
                floor_s = host.floor.s()
            answers.append(_ask(client, f"clone{i}", floor_s))
            client.remove(f"clone{i}", force=True)
    return figures(answers)


def figures(answers: Sequence[Answers]) -> list[Figure]:
    """Count what must not be, and sum up the rest."""
    none = Wanted(0)

    def count(key: str, what: str, number: int) -> Figure:
        return Figure(key, what, "", (number,), wanted=none)

    wrong = [max(r.off_s for r in each.readings) for each in answers]
    surely = [min(r.off_at_most_s for r in each.readings) for each in answers]
    number = len(answers)
    return [
        Figure(
            "total",
            f"create, start and `true`, of {number} in a row",
            "s",
            tuple(each.total_s for each in answers),
            tuple(each.floor_s for each in answers),
        ),
        count("booted", "clones that booted instead", sum(a.boot != "template" for a in answers)),
        *(
            count(field, f"clones whose {field} another one had", repeated(values))
            for field, values in zip(
                _FIELDS, zip(*(each.who for each in answers), strict=True), strict=True
            )
        ),
        count(
            "clock",
            f"clones with a clock off by more than {CLOCK_LIMIT_S * 1000:g} ms",
            sum(each > CLOCK_LIMIT_S for each in wrong),
        ),
        Figure("clock_most", "a clock's error, at most", "s", tuple(surely)),
    ]


def repeated(values: Sequence[str]) -> int:
    """Count the values that came before."""
    return len(values) - len(set(values))


def _ask(client: Client, name: str, floor_s: float) -> Answers:
    took = from_nothing(client, name)
    who = tuple(output_of(client, name, "sh", "-c", _WHO).split())
    assert len(who) == len(_FIELDS), f"{name} said {who}"
    extra = client.inspect(name).extra
    assert extra is not None
    return Answers(took.total, floor_s, extra.boot, who, _read_clock(client, name))


def _read_clock(client: Client, name: str) -> tuple[Reading, ...]:
    questions: SimpleQueue[StdinData | None] = SimpleQueue()
    readings = []
    with client.exec(name, ExecSpec(_CLOCK, stdin=True), iter(questions.get, None)) as call:
        try:
            outputs = call.outputs()
            for _ in range(READINGS):
                before = time.time_ns()
                questions.put(StdinData(b"\n"))
                output = next(outputs)
                after = time.time_ns()
                assert isinstance(output, ExecData), output
                # Seconds, a point or a comma, and six digits.
                micros = int(output.data.replace(b".", b"").replace(b",", b""))
                readings.append(Reading(before, micros * 1000, after))
        finally:
            questions.put(None)
    return tuple(readings)
