"""What changed between two records of one cell, measure by measure.

* **bytes of the ledger** repeat exactly on any machine with the same kernels: any difference is a change;
* **allocator's bytes** and **times** depend on the machine and its libraries: they are compared only where these are the
  same; how times are judged is told in :mod:`harness.compare.times`;
* **fidelity** has changed where a gradient stops or begins to be exact, or where one that is not exact moves by more
  than the threshold: rounding is no change.

Changes are measured by the ratio of both values, so that A against B and B against A agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from harness.provenance import fingerprint
from harness.record import Fidelity, Record
from harness.stats import EQUIVALENCE_MARGIN

Metric = Literal["peak", "saved", "allocated", "ratio", "time", "fidelity", "accuracy"]
METRICS: tuple[Metric, ...] = ("peak", "saved", "allocated", "ratio", "time", "fidelity", "accuracy")
Verdict = Literal["worse", "better", "changed", "same", "not judged", "not compared"]
Interval = tuple[float, float]

BYTES: dict[Metric, str] = {"peak": "peak_live_bytes", "saved": "saved_bytes", "allocated": "cuda_allocated_bytes"}
"""Fields of a record's memory block."""
TIMES: dict[Metric, str] = {"ratio": "ratio", "time": "step_time_s"}
"""Fields of a record's timing block."""
OF_THE_MACHINE: tuple[Metric, ...] = ("allocated", *TIMES)
"""Measures that say nothing across machines or environments."""
FACTS = ("device", "threads", "cpu.model", "gpu.devices", "python.version", "torch", "packages")
"""Provenance that makes up the environment's part of a fingerprint."""


@dataclass(frozen=True)
class Limits:
    """From where on a change counts.

    Args:
        threshold: of bytes, times and errors, as a fraction: ``0.05`` is 5 %.
        margin: of accuracies, as a fraction: ``0.01`` is one percentage point.
        absolute: whether step times are judged themselves: for two runs on one quiet machine.
    """

    threshold: float = 0.05
    margin: float = EQUIVALENCE_MARGIN
    absolute: bool = False


@dataclass(frozen=True)
class Delta:
    """One measure of a cell in two stores.

    Args:
        metric: what was measured; bytes, time in the baseline's, seconds, relative L2 error of the gradient, accuracy as
            a fraction.
        at: ``initial`` or ``trained`` weights, for the fidelity; the baseline, for a ratio; else empty.
        before: in A; None where it has no value.
        after: in B.
        before_interval: 95 % interval of a time or ratio in A, or of the accuracy's paired difference (then in B's place,
            too).
        after_interval: of a time or ratio in B.
        verdict: ``worse`` and ``better`` are beyond the limits, ``changed`` is a difference within them; ``not judged``:
            a time that says too little by itself.
        note: why, or why not.
    """

    metric: Metric
    before: float | None
    after: float | None
    verdict: Verdict
    at: str = ""
    before_interval: Interval | None = None
    after_interval: Interval | None = None
    note: str = ""


def deltas(before: Record, after: Record, wanted: frozenset[str], limits: Limits) -> Iterator[Delta]:
    """Every measure that at least one of two records has, but the accuracy, and times that can be compared.

    Args:
        before: of a cell, in A.
        after: of the same cell, in B.
        wanted: names of :data:`METRICS`.
        limits: from where on a change counts.
    """
    elsewhere = environment_differences(before.provenance, after.provenance)
    for metric, field in BYTES.items():
        if metric in wanted:
            one, other = _field(before.memory, field), _field(after.memory, field)
            yield from _judged(
                metric, one, other, elsewhere, lambda a, b, m=metric: _bytes(m, a, b, before, after, limits)
            )
    if elsewhere or before.timing is None or after.timing is None:
        for metric in (metric for metric in TIMES if metric in wanted):
            one, other = _field(before.timing, TIMES[metric]), _field(after.timing, TIMES[metric])
            yield from _judged(metric, one, other, elsewhere)
    if "fidelity" in wanted:
        yield from _fidelities(before, after, limits)


def environment_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names of the facts that keep times of two records apart; none where machine and environment are the same.

    Args:
        before: provenance of a record.
        after: of another.
    """
    if fingerprint({**before, "code": None}) == fingerprint({**after, "code": None}):
        return []
    on_gpu = "cuda" in (before.get("device"), after.get("device"))
    names = [name for name in FACTS if name != "gpu.devices" or on_gpu]
    return [name for name in names if _fact(before, name) != _fact(after, name)] or ["fingerprint"]


def change(before: float, after: float, threshold: float) -> Verdict:
    """How a value moved of which less is better.

    Args:
        before: not negative.
        after: not negative.
        threshold: as a fraction, of the smaller of the two.
    """
    if before == after:
        return "same"
    low, high = sorted((before, after))
    if math.isfinite(high) and high <= low * (1 + threshold):
        return "changed"
    return "worse" if after > before else "better"


def _judged(
    metric: Metric,
    one: float | None,
    other: float | None,
    elsewhere: list[str],
    judge: Callable[..., Delta] | None = None,
) -> Iterator[Delta]:
    """A value in both records is judged; one in a single record is a change; none is nothing."""
    if one is None and other is None:
        return
    if one is None or other is None:
        yield Delta(metric, one, other, "changed", note=f"no value in {'A' if one is None else 'B'}")
    elif metric in OF_THE_MACHINE and elsewhere:
        why = f"machine or environment differs: {', '.join(elsewhere)}"
        yield Delta(metric, one, other, "not compared", note=why)
    elif judge is not None:
        yield judge(one, other)


def _bytes(metric: Metric, one: float, other: float, before: Record, after: Record, limits: Limits) -> Delta:
    verdict = change(one, other, limits.threshold)
    if metric == "allocated" and verdict == "changed":
        verdict = "same"  # library workspaces vary from run to run
    paths = [record.memory.kernel_path if record.memory else "" for record in (before, after)]
    return Delta(metric, one, other, verdict, note="" if paths[0] == paths[1] else f"kernels: {paths[0]} -> {paths[1]}")


def _fidelities(before: Record, after: Record, limits: Limits) -> Iterator[Delta]:
    for at in ("initial", "trained"):
        one, other = ([block for block in record.fidelity if block.at == at] for record in (before, after))
        if one and other:
            yield _fidelity(one[-1], other[-1], limits)
        elif one or other:
            values = [block[-1].relative_l2 if block else None for block in (one, other)]
            yield Delta("fidelity", values[0], values[1], "changed", at, note=f"no value in {'B' if one else 'A'}")


def _fidelity(one: Fidelity, other: Fidelity, limits: Limits) -> Delta:
    before, after = one.relative_l2, other.relative_l2
    if one.exact != other.exact:
        word = "exact" if other.exact else "no longer exact"
        return Delta("fidelity", before, after, "better" if other.exact else "worse", one.at, note=word)
    verdict: Verdict = "same" if one.exact else change(before, after, limits.threshold)
    return Delta("fidelity", before, after, "same" if verdict == "changed" else verdict, one.at)


def _field(block: Any, name: str) -> float | None:
    return None if block is None else getattr(block, name)


def _fact(provenance: Mapping[str, Any], name: str) -> Any:
    value: Any = provenance
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
