from __future__ import annotations

from dataclasses import replace

import pytest

from bench.clones import Answers, Reading, figures

MS = 1_000_000


@pytest.mark.parametrize(
    ("guest", "off_s", "off_at_most_s"),
    [
        # Between the readings it may be right, and off by no more than they are apart.
        (1000, 0, 0.020),
        (1005, 0, 0.015),
        (1020, 0, 0.020),
        # Outside it is off by the distance at least.
        (950, 0.050, 0.070),
        (1100, 0.080, 0.100),
    ],
)
def test_a_reading_bounds_the_clocks_error(guest: int, off_s: float, off_at_most_s: float) -> None:
    reading = Reading(1000 * MS, guest * MS, 1020 * MS)
    assert reading.off_s == pytest.approx(off_s)
    assert reading.off_at_most_s == pytest.approx(off_at_most_s)


def answers(number: int, *, boot: str = "template", late_ms: int = 0) -> Answers:
    who = tuple(f"{field}{number}" for field in ("random", "id", "key", "mac", "boot"))
    wide = Reading(0, 500 * MS, 900 * MS)
    close = Reading(1000 * MS, (1005 - late_ms) * MS, 1010 * MS)
    return Answers(0.5, 4.0, boot, who, (wide, close))


def counts(*clones: Answers) -> dict[str, float]:
    return {figure.key: figure.value.median for figure in figures(clones)}


def test_clones_that_differ_in_everything_are_as_wanted() -> None:
    said = figures([answers(i) for i in range(5)])
    assert all(figure.met for figure in said if figure.wanted is not None)
    assert counts(answers(1))["clock_most"] == pytest.approx(0.005)


def test_each_thing_that_two_clones_share_is_counted() -> None:
    first, second, third = answers(1), answers(2), answers(3)
    copied = replace(second, who=(*second.who[:3], first.who[3], second.who[4]))
    found = counts(first, copied, third)
    assert found["MAC address"] == 1
    assert found["machine-id"] == found["boot id"] == 0


def test_a_wrong_clock_is_counted_by_any_reading_that_proves_it() -> None:
    assert counts(answers(1), answers(2, late_ms=60))["clock"] == 1
    assert counts(answers(1), answers(2, late_ms=50))["clock"] == 0


def test_a_clone_that_booted_is_counted() -> None:
    assert counts(answers(1), answers(2, boot="cold"))["booted"] == 1
