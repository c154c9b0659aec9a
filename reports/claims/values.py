"""A metric's value from the records of a match, or why they cannot give it."""

from __future__ import annotations

from collections.abc import Callable

from harness.record import Memory, Training
from reports.claims.loading import Claim
from reports.claims.matching import Match
from reports.groups import Item, Row

TIMES = ("speed_ratio", "throughput", "step_time", "plan_time", "epoch_time", "training_time", "time_saving")
"""Metrics of speed."""
TRAINED = ("accuracy", "accuracy_difference", "epoch_time", "training_time")
"""Metrics that need a whole training."""


class AbsentError(Exception):
    """The records do not hold it; the message says why."""


def value(claim: Claim, match: Match) -> float:
    """The metric in the store's units: bytes, seconds, samples per second, fractions.

    Args:
        claim: which metric, and which memory.
        match: a cell, and the baseline's where the metric is a ratio.

    Raises:
        AbsentError: a record does not hold it.
    """
    return VALUES[claim.entry.metric](claim, match)


def bytes_of(claim: Claim, item: Item) -> int:
    """The peak of a step in the memory that the claim names: on a GPU the allocator's, elsewhere the ledger's.

    Args:
        claim: names the memory.
        item: a record.

    Raises:
        AbsentError: the record has no such peak.
    """
    memory = _memory(item)
    field = "peak_live_bytes"
    if item.record.spec.device == "cuda" and not item.record.spec.predicted:
        field = "cuda_reserved_bytes" if claim.entry.memory == "reserved" else "cuda_allocated_bytes"
    return _known(getattr(memory, field), memory.reasons.get(field), item)


def _memory(item: Item) -> Memory:
    if item.record.memory is None:
        raise AbsentError(Row((item,)).why_absent("memory"))
    return item.record.memory


def _training(item: Item) -> Training:
    if item.record.training is None:
        raise AbsentError(Row((item,)).why_absent("training"))
    return item.record.training


def _known(found: float | None, reason: str | None, item: Item) -> int:
    if found is None:
        raise AbsentError(f"{item.record.spec.method.label}: {reason or 'not in the record'}")
    return int(found)


def _base(claim: Claim, match: Match) -> Item:
    if match.base is None:
        assert claim.entry.baseline is not None
        raise AbsentError(f"no record of the baseline {claim.entry.baseline.label} with everything else the same")
    return match.base


def _peak(claim: Claim, match: Match) -> float:
    return bytes_of(claim, match.item)


def _memory_ratio(claim: Claim, match: Match) -> float:
    return bytes_of(claim, match.item) / bytes_of(claim, _base(claim, match))


def _share(claim: Claim, match: Match) -> float:
    memory = _memory(match.item)
    live = _known(memory.peak_live_bytes, memory.reasons.get("peak_live_bytes"), match.item)
    return _known(memory.peak_activation_bytes, None, match.item) / live


def _saved_less(claim: Claim, match: Match) -> float:
    """What the forward keeps for the backward: the peak of a single node is the gradient's and the output's."""
    ours, theirs = _memory(match.item), _memory(_base(claim, match))
    name = "saved_bytes"
    kept = _known(ours.saved_bytes, ours.reasons.get(name), match.item)
    if not kept:
        raise AbsentError("the method keeps no such bytes: nothing to divide by")
    return _known(theirs.saved_bytes, theirs.reasons.get(name), match.item) / kept


def _time_ratio(claim: Claim, match: Match) -> float:
    """Method's step time / baseline's: of interleaved rounds where the record has them."""
    timing = match.item.record.timing
    if timing is None:
        raise AbsentError(Row((match.item,)).why_absent("timing"))
    assert claim.entry.baseline is not None
    if timing.ratio is not None and timing.baseline == claim.entry.baseline.name and not claim.entry.baseline.options:
        return timing.ratio
    other = _base(claim, match)
    if other.record.timing is None:
        raise AbsentError(Row((other,)).why_absent("timing"))
    return timing.step_time_s / other.record.timing.step_time_s


def _step(claim: Claim, match: Match) -> float:
    timing = match.item.record.timing
    if timing is None:
        raise AbsentError(Row((match.item,)).why_absent("timing"))
    return timing.step_time_s


def _throughput(claim: Claim, match: Match) -> float:
    return match.item.record.spec.batch / _step(claim, match)


def _plan(claim: Claim, match: Match) -> float:
    memory = _memory(match.item)
    if memory.plan_seconds is None:
        raise AbsentError(memory.reasons["plan_seconds"])
    return memory.plan_seconds


def _final(item: Item) -> float:
    training = _training(item)
    if training.final_test_accuracy is None:
        raise AbsentError(training.reasons["final_test_accuracy"])
    return training.final_test_accuracy


def _accuracy(claim: Claim, match: Match) -> float:
    return _final(match.item)


def _accuracy_difference(claim: Claim, match: Match) -> float:
    """Of one seed: the tables of the page have the intervals over seeds."""
    return _final(match.item) - _final(_base(claim, match))


def _training_time(claim: Claim, match: Match) -> float:
    return _training(match.item).seconds


def _epoch_time(claim: Claim, match: Match) -> float:
    training = _training(match.item)
    if not training.epochs:
        raise AbsentError("no epoch was finished")
    return training.seconds / len(training.epochs)


def _flops_saving(claim: Claim, match: Match) -> float:
    ours, theirs = match.item.record.ops, _base(claim, match).record.ops
    if ours is None or theirs is None or ours.step_flops is None or not theirs.step_flops:
        raise AbsentError("no record of both holds the FLOPs of a step")
    return 1 - ours.step_flops / theirs.step_flops


VALUES: dict[str, Callable[[Claim, Match], float]] = {
    "peak_memory": _peak,
    "activation_share": _share,
    "memory_ratio": _memory_ratio,
    "memory_less": lambda claim, match: 1 / _memory_ratio(claim, match),
    "speed_ratio": lambda claim, match: 1 / _time_ratio(claim, match),
    "throughput": _throughput,
    "step_time": _step,
    "plan_time": _plan,
    "epoch_time": _epoch_time,
    "training_time": _training_time,
    "time_saving": lambda claim, match: 1 - _time_ratio(claim, match),
    "accuracy": _accuracy,
    "accuracy_difference": _accuracy_difference,
    "node_memory_less": _saved_less,
    "flops_saving": _flops_saving,
}
