"""What a store of records says about methods on the model and data at hand: measured ratios, and accuracy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from harness.plan.candidates import BASELINE
from harness.plan.hardware import Hardware
from harness.record import Record
from harness.spec import CellSpec, Ref
from harness.store import Store

MARGIN = 0.01
"""A biased method counts as good as BPTT where its final test accuracy is at most this much lower (our choice)."""
SEEDS = 3
"""On at least so many seeds, on each of them (our choice)."""


@dataclass(frozen=True)
class Evidence:
    """What a store holds on the subject.

    Args:
        ratios: median of the paired step-time ratios to plain BPTT, by method, and how many records it is from.
        accuracy: final test accuracy less BPTT's, by method, one value a seed.
    """

    ratios: dict[str, tuple[float, int]]
    accuracy: dict[str, list[float]]

    def as_good(self, method: Ref) -> bool:
        """Whether a method has trained as well as BPTT on such data, on enough seeds."""
        found = self.accuracy.get(_key(method), [])
        return len(found) >= SEEDS and min(found) >= -MARGIN

    def ratio(self, method: Ref) -> tuple[float, int] | None:
        """The measured slow-down against BPTT and the number of records, or None."""
        return self.ratios.get(_key(method))


NOTHING = Evidence({}, {})


def gather(store: Path, spec: CellSpec, hardware: Hardware | None = None) -> Evidence:
    """Records of the same model, data, loss and precision; T and batch may differ.

    Args:
        store: folder of records.
        spec: the subject.
        hardware: step times of other kinds of device (CPU or GPU) do not count; None: all do.
    """
    return weigh((record for _, record in Store(store).records()), spec, hardware)


def weigh(records: Iterable[Record], spec: CellSpec, hardware: Hardware | None = None) -> Evidence:
    """The same from records."""
    ratios: dict[str, list[float]] = defaultdict(list)
    trained: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        if not _alike(record.spec, spec):
            continue
        timing = record.timing
        here = hardware is None or record.spec.device == hardware.device
        if here and timing is not None and timing.paired and timing.ratio is not None and timing.baseline == BASELINE:
            ratios[_key(record.spec.method)].append(timing.ratio)
        if record.training is not None and record.training.final_test_accuracy is not None:
            setting = record.spec.group("method", "baseline", "seed", "phases")
            accuracy = record.training.final_test_accuracy
            trained[setting][_key(record.spec.method)][record.spec.seed] = accuracy
    return Evidence({method: (median(values), len(values)) for method, values in ratios.items()}, _differences(trained))


def _differences(trained: dict[str, dict[str, dict[int, float]]]) -> dict[str, list[float]]:
    """Per seed, against the one BPTT of the same setting."""
    found: dict[str, list[float]] = defaultdict(list)
    for methods in trained.values():
        reference = methods.get(BASELINE, {})
        for method, by_seed in methods.items():
            found[method] += [by_seed[seed] - reference[seed] for seed in sorted(by_seed.keys() & reference.keys())]
    return dict(found)


def _alike(one: CellSpec, other: CellSpec) -> bool:
    same = ("model", "data", "loss", "precision")
    return not one.predicted and one.devices == 1 and all(getattr(one, key) == getattr(other, key) for key in same)


def _key(method: Ref) -> str:
    return method.label
