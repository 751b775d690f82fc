"""Suspend and resume: a machine's memory goes to disk and its process ends, and back."""

from __future__ import annotations

import time
from typing import NamedTuple

from arcboxd.client.client import Client
from arcboxd.settings import MIB
from bench.figures import Figure
from bench.host import Host, rounds
from bench.machines import clone, output_of, prepare

TIMES = 5


class _Round(NamedTuple):
    suspend: float
    resume: float
    answer: float
    saved_bytes: int


def run(host: Host) -> list[Figure]:
    """Alternate the floor with suspending and resuming one machine."""
    with host.daemon() as client:
        prepare(client)
        with clone(client, "one"):
            floors, took = rounds(host.floor, TIMES, lambda _: _there_and_back(client, "one"))
    beside = tuple(floors)
    back = tuple(each.resume + each.answer for each in took)
    return [
        Figure("suspend", "Suspend", "s", tuple(each.suspend for each in took), beside),
        Figure(
            "resume",
            "Resume, until the agent answers",
            "s",
            tuple(each.resume for each in took),
            beside,
        ),
        Figure("back", "Resume and `true`", "s", back, beside),
        Figure("saved", "memory on disk", "MiB", tuple(each.saved_bytes / MIB for each in took)),
    ]


def _there_and_back(client: Client, name: str) -> _Round:
    began = time.perf_counter()
    saved = client.suspend(name)
    suspended = time.perf_counter()
    client.resume(name)
    resumed = time.perf_counter()
    output_of(client, name, "true")
    answered = time.perf_counter()
    return _Round(suspended - began, resumed - suspended, answered - resumed, saved)
