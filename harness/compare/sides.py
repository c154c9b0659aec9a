"""The timings of a cell in two stores, what runs of the same code differ by, and how a baseline's own times moved."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median

from harness.compare.measures import Interval
from harness.record import Record, Timing

RUN_TO_RUN, RUN_TO_RUN_DISTURBED = 0.04, 0.09
"""Standard deviation of a ratio's logarithm from one run to the next, beyond the ratio's own interval, for timings that
are not, and are, marked disturbed. (Seen with the suite quick on two shared cores: 0.01 over 7 cells of two undisturbed
runs, up to 0.065 where one of two was disturbed; 0.08 over 12 and over 27 cells of two disturbed runs, and 0.089 over
three runs each of six cells.)"""
REPEATS = 6
"""Degrees of freedom from which on repeated runs tell the scatter better than that (our choice)."""
CHANCE = 0.05
"""Probability that chance alone makes any ratio of a comparison worse or better (our choice)."""
NORMAL = NormalDist()
WIDTH = 2 * NORMAL.inv_cdf(0.975)
"""Of a 95 % interval, in standard deviations."""


@dataclass(frozen=True)
class Side:
    """The timings of a cell in one store: runs under one fingerprint, and geometric means over them.

    Args:
        step: seconds of a step.
        step_interval: its 95 % interval.
        base: seconds of the baseline's step, in turn with it; None where it was not timed.
        ratio: step over base, round by round; None likewise.
        ratio_interval: its 95 % interval.
        runs: how many.
        disturbed: whether any of them was.
    """

    step: float
    step_interval: Interval
    base: float | None
    ratio: float | None
    ratio_interval: Interval | None
    runs: int
    disturbed: bool


@dataclass(frozen=True)
class Pair:
    """A timed cell of both stores.

    Args:
        baseline: name of its baseline.
        device: where it ran.
        own: whether it is the baseline itself.
        before: in A.
        after: in B.
    """

    baseline: str
    device: str
    own: bool
    before: Side
    after: Side

    @property
    def has_ratio(self) -> bool:
        """Whether both stores have its ratio."""
        return self.before.ratio is not None and self.after.ratio is not None


@dataclass(frozen=True)
class Noise:
    """What chance does to ratios.

    Args:
        judged: how many ratios both stores have.
        run_to_run: standard deviation of a ratio's logarithm over repeated runs beyond its interval; None where too few
            cells were repeated: then :data:`RUN_TO_RUN` is taken.
    """

    judged: int
    run_to_run: float | None

    def limit(self, pair: Pair) -> float:
        """Factor between the two ratios of a cell that chance does not reach."""
        bar = NORMAL.inv_cdf(1 - CHANCE / (2 * max(1, self.judged)))  # Bonferroni's, two-sided
        return math.exp(bar * math.sqrt(self._variance(pair.before) + self._variance(pair.after)))

    def _variance(self, side: Side) -> float:
        between = self.run_to_run
        if between is None:
            between = RUN_TO_RUN_DISTURBED if side.disturbed else RUN_TO_RUN
        return (between**2 + _deviation(side.ratio_interval) ** 2) / side.runs


@dataclass(frozen=True)
class Shift:
    """How long a baseline's own steps take in B, in multiples of A's.

    Args:
        baseline: its name.
        device: where it ran.
        factor: median over the timings that both stores have: the baseline's own cells, and beside each method.
        low: the smallest.
        high: the largest.
        count: how many.
        ratios: median change of the ratios to it; None without any.
    """

    baseline: str
    device: str
    factor: float
    low: float
    high: float
    count: int
    ratios: float | None


def pair(before: Sequence[Record], after: Sequence[Record]) -> Pair | None:
    """A cell in both stores; None where one has no timing of it.

    Args:
        before: its runs in A under one fingerprint.
        after: in B.
    """
    one, other = ([record.timing for record in runs if record.timing is not None] for runs in (before, after))
    if not one or not other:
        return None
    spec = before[0].spec
    return Pair(one[-1].baseline, spec.device, spec.method.name == one[-1].baseline, _side(one), _side(other))


def run_to_run(repeated: Iterable[Sequence[Record]]) -> float | None:
    """Scatter of ratios' logarithms over repeated runs beyond their intervals; None where too few were repeated.

    Args:
        repeated: runs of each cell of each store under one fingerprint.
    """
    squares, explained, freedom = 0.0, 0.0, 0
    for records in repeated:
        runs = [record.timing for record in records if record.timing is not None and record.timing.ratio]
        if len(runs) > 1:
            logs = [math.log(run.ratio) for run in runs if run.ratio]
            squares += math.fsum((each - fmean(logs)) ** 2 for each in logs)
            explained += (len(runs) - 1) * fmean(_deviation(_ratio_interval(run)) ** 2 for run in runs)
            freedom += len(runs) - 1
    return None if freedom < REPEATS else math.sqrt(max(0.0, squares - explained) / freedom)


def shifts(pairs: Iterable[Pair]) -> list[Shift]:
    """How the own times of every baseline moved, on every device.

    Args:
        pairs: timed cells of both stores.
    """
    own: dict[tuple[str, str], list[float]] = defaultdict(list)
    ratios: dict[tuple[str, str], list[float]] = defaultdict(list)
    for each in pairs:
        key, one, other = (each.baseline, each.device), each.before, each.after
        if one.base and other.base:
            own[key].append(math.log(other.base / one.base))
        if one.ratio and other.ratio:
            ratios[key].append(math.log(other.ratio / one.ratio))
        if each.own and one.step and other.step:
            own[key].append(math.log(other.step / one.step))
    return [_shift(key, found, ratios[key]) for key, found in own.items()]


def _shift(key: tuple[str, str], found: list[float], ratios: list[float]) -> Shift:
    factor, low, high = (math.exp(each) for each in (median(found), min(found), max(found)))
    return Shift(*key, factor, low, high, len(found), math.exp(median(ratios)) if ratios else None)


def _side(runs: Sequence[Timing]) -> Side:
    paired = [run for run in runs if run.ratio]
    intervals = [interval for interval in map(_ratio_interval, paired) if interval]
    return Side(
        step=_mean(run.step_time_s for run in runs),
        step_interval=(_mean(run.ci_low_s for run in runs), _mean(run.ci_high_s for run in runs)),
        base=_mean(run.baseline_step_time_s for run in paired) if paired else None,
        ratio=_mean(run.ratio for run in paired) if paired else None,
        ratio_interval=(_mean(low for low, _ in intervals), _mean(high for _, high in intervals))
        if intervals
        else None,
        runs=len(paired) or len(runs),
        disturbed=any(run.verdict == "disturbed" for run in runs),
    )


def _ratio_interval(run: Timing) -> Interval | None:
    return (run.ratio_low, run.ratio_high) if run.ratio_low and run.ratio_high else None


def _deviation(interval: Interval | None) -> float:
    """Standard deviation of a logarithm from its 95 % interval."""
    return 0.0 if interval is None else math.log(interval[1] / interval[0]) / WIDTH


def _mean(values: Iterable[float | None]) -> float:
    """Geometric mean of what is positive; exact where all are equal, zero where there is nothing."""
    found = [value for value in values if value]
    if len(set(found)) < 2:
        return found[0] if found else 0.0
    return math.exp(fmean(map(math.log, found)))
