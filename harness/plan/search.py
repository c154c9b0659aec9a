"""The largest batch, or the largest T, whose predicted peak fits: secant steps inside a bracket.

A peak is nearly affine in N and in T, so the first secant lands next to the answer, and two or three predictions close
the bracket. Where it is not, steps alternate with halving, and the answer is still the edge between what fits and what
does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Peak = Callable[[int], int]
"""Predicted peak in bytes at a size of 1 or more; grows with it."""


@dataclass(frozen=True)
class Largest:
    """What was found.

    Args:
        value: the largest size that fits; 0 where even 1 does not.
        verified: its peak was predicted; otherwise it lies beyond ``far`` and on the line through two predictions.
        at_least: the search ended at its upper limit or after its last try, and more may fit.
    """

    value: int
    verified: bool = True
    at_least: bool = False

    def __str__(self) -> str:
        mark = "" if self.verified else "~"
        return f"{mark}{self.value}{'+' if self.at_least else ''}"


@dataclass
class _Search:
    peak: Peak
    available: int
    limit: int
    known: dict[int, int]
    origin: int
    steps: int = 0
    fits: int = field(init=False, default=0)
    fails: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        for size, found in self.known.items():
            self.note(size, found)

    def note(self, size: int, peak: int) -> None:
        self.known[size] = peak
        if peak <= self.available:
            self.fits = max(self.fits, size)
        else:
            self.fails = size if self.fails is None else min(self.fails, size)

    def closed(self) -> bool:
        top = self.limit + 1 if self.fails is None else self.fails
        return top - self.fits <= 1

    def guess(self) -> int:
        """The next size to try, strictly inside the bracket."""
        low, high = self.fits + 1, self.limit if self.fails is None else self.fails - 1
        self.steps += 1
        if self.steps % 3 == 0 and self.fails is not None:
            return (low + high) // 2
        return min(max(self.crossing(), low), high)

    def crossing(self) -> int:
        """Where the line through the two sizes nearest to the edge reaches what is available."""
        points = sorted({0: self.origin, **self.known}.items())
        nearest = sorted(points, key=lambda point: abs(point[1] - self.available))[:2]
        (x, y), (u, v) = sorted(nearest)
        if v <= y:
            return self.limit
        return min(self.limit, u + (self.available - v) * (u - x) // (v - y))


def largest(
    peak: Peak,
    available: int,
    known: dict[int, int],
    origin: int = 0,
    limit: int = 2**20,
    far: int | None = None,
    tries: int = 64,
    straight: bool = False,
) -> Largest:
    """The largest size from 1 to ``limit`` whose peak is at most ``available``.

    Args:
        peak: the predictor; not called for sizes in ``known``.
        available: bytes.
        known: peaks that are known already; at least one.
        origin: estimate of the peak at size 0, for the first guess only.
        limit: largest size that is of interest.
        far: sizes above it are too slow to predict: an answer there is read off the line, and says so.
        tries: predictions to make at most; the bracket need not be closed after them.
        straight: take the peak for affine: where the line through two predictions ends at one that fits, the next size
            is not predicted to see that it does not.
    """
    search = _Search(peak, available, limit, dict(known), origin)
    while not search.closed() and (search.steps < tries or not search.fits):
        size = search.guess()
        if far is not None and size > far:
            return _beyond(search, far)
        search.note(size, peak(size))
        if straight and search.fits == size == search.crossing():
            return Largest(size, at_least=size == limit)
    return Largest(search.fits, at_least=search.fits == limit or not search.closed())


def _beyond(search: _Search, far: int) -> Largest:
    """An answer above ``far``: one more prediction gives the line, which two estimates would only guess at."""
    if len(search.known) < 2:
        (size,) = search.known
        other = size // 2 if size > 1 else 2
        search.note(other, search.peak(other))
    value = max(search.crossing(), search.fits)
    return Largest(value, verified=value in search.known, at_least=value == search.limit)
