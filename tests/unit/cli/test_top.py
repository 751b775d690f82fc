from __future__ import annotations

from arcboxd.cli import top
from arcboxd.client.views import MachineUsage, Usage

NOTHING = MachineUsage("", "", 0, 0, 0, 0, None, 0.0)


def usage(**cpu_seconds: float) -> Usage:
    machines = [
        MachineUsage(name, name, 1 << 20, 1 << 30, 0, 2 << 30, 3 << 29, seconds)
        for name, seconds in cpu_seconds.items()
    ]
    return Usage(tuple(machines), 16 << 30, 9 << 30)


def test_the_processors_use_is_that_between_two_looks() -> None:
    meter = top.Meter()
    assert meter.percents(usage(a=100.0), 10.0) == {"a": None}
    assert meter.percents(usage(a=103.0, b=5.0), 12.0) == {"a": 150.0, "b": None}
    assert meter.percents(usage(a=103.0), 13.0) == {"a": 0.0}
    assert meter.percents(usage(a=104.0, b=6.0), 13.0) == {"a": None, "b": None}, "no time passed"


def test_a_process_that_is_another_begins_anew() -> None:
    meter = top.Meter()
    meter.percents(usage(a=100.0), 10.0)
    assert meter.percents(usage(a=1.0), 12.0) == {"a": None}
    assert meter.percents(usage(a=2.0), 14.0) == {"a": 50.0}
    meter.percents(usage(), 16.0)
    assert meter.percents(usage(a=9.0), 18.0) == {"a": None}, "gone in between"


def test_what_is_not_known_is_a_dash() -> None:
    silent = Usage((NOTHING,), 0, 0)
    assert top.rows(silent, {"": None}) == [("", "0B", "0B", "0B", "- / 0B", "-")]
    told = top.rows(usage(a=1.0), {"a": 12.34})
    assert told == [("a", "1MiB", "1GiB", "0B", "1.5GiB / 2GiB", "12.3")]
    assert top.host_line(silent) == "Host memory: 0B, 0B available"
