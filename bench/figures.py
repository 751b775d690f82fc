"""What a measurement gives: medians, and ratios to what was measured beside them. No I/O."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

FLOOR = "F"
"""The base of most ratios: a bare kernel's way to a busybox init, see `floor`."""


class NotAvailableError(Exception):
    """This host or this version cannot be measured so; the message says why."""


class Spread(NamedTuple):
    """What several samples say."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Sum up samples, of which there is at least one."""
        return cls(statistics.median(samples), min(samples), max(samples))


@dataclass(frozen=True, slots=True)
class Wanted:
    """The most that a figure should be."""

    most: float
    aim: float | None = None
    """What would be better still."""
    ratio: bool = False
    """It is meant of the ratio, not of the value."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured several times."""

    key: str
    """Names it in the results, whatever its words are."""
    what: str
    unit: str
    """``s``, ``MiB``, or empty for a count."""
    samples: tuple[float, ...]
    beside: tuple[float, ...] = ()
    """What it is compared with: the sample at the same place was taken just before, or is one."""
    base: str = FLOOR
    """What `beside` is of."""
    wanted: Wanted | None = None

    @property
    def value(self) -> Spread:
        """Give the value."""
        return Spread.of(self.samples)

    @property
    def ratio(self) -> Spread | None:
        """Give the ratio to the base, taken pair by pair so that a slow minute hurts both alike."""
        if not self.beside:
            return None
        beside = self.beside * len(self.samples) if len(self.beside) == 1 else self.beside
        return Spread.of([a / b for a, b in zip(self.samples, beside, strict=True)])

    @property
    def met(self) -> bool | None:
        """Tell whether it is what was wanted; None when nothing was."""
        if self.wanted is None:
            return None
        judged = self.ratio if self.wanted.ratio else self.value
        assert judged is not None, f"{self.key} has a wanted ratio and nothing beside it"
        return judged.median <= self.wanted.most
