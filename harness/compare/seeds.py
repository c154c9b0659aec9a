"""Accuracies of two stores, paired by seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from harness.compare.measures import Delta, Interval, Limits, Verdict
from harness.record import Record
from harness.stats import Interval as Spread
from harness.stats import paired_difference

Group = tuple[str, str]
"""A suite, and a cell's identity without its seed."""


@dataclass(frozen=True)
class Trained:
    """Trainings of one cell over seeds, all under one fingerprint.

    Args:
        accuracies: final test accuracy by seed.
        data: hash of the data set's content.
    """

    accuracies: Mapping[int, float]
    data: frozenset[str]


def trained(records: Iterable[Record]) -> dict[Group, Trained]:
    """Final accuracies over seeds; of several fingerprints in a group the newest, for others are not to be pooled.

    Args:
        records: the latest of each cell.
    """
    groups: dict[Group, list[Record]] = defaultdict(list)
    for record in records:
        if record.training is not None and record.training.final_test_accuracy is not None:
            groups[record.suite, record.spec.group("seed")].append(record)
    return {group: _trained(found) for group, found in groups.items()}


def accuracy(before: Trained, after: Trained, limits: Limits) -> Delta | None:
    """Means over the seeds that both have, and the verdict on their paired difference; None without a common seed.

    ``worse`` and ``better``: the mean difference leaves the margin and, with two seeds or more, its 95 % interval does
    not hold zero.

    Args:
        before: of a cell, in A.
        after: of the same cell, in B.
        limits: the margin.
    """
    seeds = sorted(before.accuracies.keys() & after.accuracies.keys())
    difference = paired_difference(after.accuracies, before.accuracies)
    if difference is None:
        return None
    one, other = (fmean(side.accuracies[seed] for seed in seeds) for side in (before, after))
    note = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    if before.data != after.data:
        return Delta("accuracy", one, other, "not compared", note=f"{note}; the data differ")
    verdict, interval = _verdict(difference, limits)
    return Delta("accuracy", one, other, verdict, "", interval, interval, note)


def _trained(records: Sequence[Record]) -> Trained:
    newest = max(records, key=lambda record: (record.created, record.run_id)).fingerprint
    same = [record for record in records if record.fingerprint == newest]
    values = {r.spec.seed: r.training.final_test_accuracy for r in same if r.training is not None}
    found = {seed: value for seed, value in values.items() if value is not None}
    return Trained(found, frozenset(str(record.data.get("sha256")) for record in same))


def _verdict(difference: Spread, limits: Limits) -> tuple[Verdict, Interval | None]:
    low, high, mean = difference.low, difference.high, difference.mean
    interval = None if low is None or high is None else (low, high)
    if abs(mean) <= limits.margin:
        return "same", interval
    if interval is not None and interval[0] <= 0 <= interval[1]:
        return "changed", interval
    return ("worse" if mean < 0 else "better"), interval
