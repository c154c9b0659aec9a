"""Statistics over seeds: t-intervals, paired differences, equivalence against a stated margin."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from scipy import stats

CONFIDENCE = 0.95
"""Coverage of every interval over seeds."""
EQUIVALENCE_MARGIN = 0.01
"""Accuracies (fractions) that differ by less than one percentage point count as equivalent; every table states it."""

Verdict = Literal["equivalent", "different", "undecided"]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its two-sided 95 % t-interval.

    Args:
        mean: arithmetic mean.
        low: lower end, or None where a single value allows no interval.
        high: upper end, or None likewise.
        n: number of values.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half the interval's width (the number behind the plus-minus sign)."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def t_interval(values: Iterable[float]) -> Interval | None:
    """Mean and Student's t-interval; None without values, no ends with a single one.

    Args:
        values: one number a seed.
    """
    sample = list(values)
    n = len(sample)
    if n == 0:
        return None
    mean = math.fsum(sample) / n
    if n == 1:
        return Interval(mean, None, None, 1)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in sample) / (n - 1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """Interval of the per-seed differences ``ours - theirs`` over the seeds that both have; None without any.

    Args:
        ours: value by seed.
        theirs: value by seed.
    """
    return t_interval(ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys()))


def equivalence(difference: Interval, margin: float = EQUIVALENCE_MARGIN) -> Verdict:
    """What an interval of paired differences says.

    ``equivalent``: it lies within the margin (also where it excludes zero); ``different``: it excludes zero and leaves
    the margin; otherwise, and with a single seed, ``undecided``.

    Args:
        difference: from :func:`paired_difference`.
        margin: largest difference that counts as none.
    """
    if difference.low is None or difference.high is None:
        return "undecided"
    if -margin <= difference.low and difference.high <= margin:
        return "equivalent"
    return "different" if difference.low > 0 or difference.high < 0 else "undecided"
