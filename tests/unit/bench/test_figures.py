from __future__ import annotations

import pytest

from bench.figures import Figure, Wanted


def figure(
    samples: tuple[float, ...], beside: tuple[float, ...] = (), wanted: Wanted | None = None
) -> Figure:
    return Figure("key", "what", "s", samples, beside, wanted=wanted)


def test_a_ratio_is_of_pairs_so_that_a_slow_minute_hurts_both_alike() -> None:
    # The host was ten times slower in the second round: the medians alone would say 0.55 to 1.
    ratio = figure((1, 10, 1), (2, 20, 2)).ratio
    assert ratio == (0.5, 0.5, 0.5)


def test_a_value_is_the_median_and_its_spread_all_there_was() -> None:
    assert figure((3, 1, 9)).value == (3, 1, 9)
    assert figure((3, 1, 9)).ratio is None


def test_samples_without_their_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        _ = figure((1, 2, 3), (1, 2)).ratio


@pytest.mark.parametrize(
    ("wanted", "met"),
    [
        (None, None),
        (Wanted(4), True),
        (Wanted(3.9), False),
        (Wanted(0.5, ratio=True), True),
        (Wanted(0.49, ratio=True), False),
    ],
)
def test_what_is_wanted_is_of_the_value_or_of_the_ratio(
    wanted: Wanted | None, met: bool | None
) -> None:
    assert figure((4, 3, 5), (8, 8, 8), wanted).met is met


def test_a_wanted_ratio_needs_something_beside_it() -> None:
    with pytest.raises(AssertionError, match="key"):
        _ = figure((1,), wanted=Wanted(1, ratio=True)).met
