"""The columns of the method table: from a row of records to cells, with DESIGN.md's comparability rules.

Ratios of bytes are baseline / method (2.00x less: half the bytes), ratios of time method / baseline (2.00x longer:
twice the time). A ratio is shown only against the record of ``spec.baseline`` in the same group and of the same seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from harness.record import Fidelity, Memory, Timing
from harness.stats import EQUIVALENCE_MARGIN, equivalence, paired_difference, t_interval
from reports.cells import Cell, absent, mib, milliseconds, missing, percent, points, science, times
from reports.groups import Group, Item, Row

Bytes = Literal[
    "peak_live_bytes", "peak_activation_bytes", "saved_bytes", "cuda_allocated_bytes", "host_peak_bytes"
]  # fmt: skip
Measure = Callable[[Group, Row], Cell]


def memory_of(item: Item) -> Memory:
    """The memory block of a record that is known to hold one."""
    assert item.record.memory is not None
    return item.record.memory


def timing_of(item: Item) -> Timing:
    """The timing block of a record that is known to hold one."""
    assert item.record.timing is not None
    return item.record.timing


def byte_count(field: Bytes) -> Measure:
    """Column of one kind of bytes, from the row's lowest seed; other seeds' range is in the title.

    Args:
        field: name in the memory block.
    """

    def measure(group: Group, row: Row) -> Cell:
        item = row.first("memory")
        if item is None:
            return missing(row, "memory")
        value = getattr(memory_of(item), field)
        if value is None:
            # There is no allocator on a CPU, and no process in a prediction: nobody expects those columns there.
            asked = not row.spec.predicted and (field != "cuda_allocated_bytes" or row.spec.device == "cuda")
            return absent(memory_of(item).reasons[field], item, asked)
        others = {getattr(memory_of(other), field) for other in row.with_block("memory").values()} - {None, value}
        spread = f"; other seeds {mib(min(others))} to {mib(max(others))} MiB" if others else ""
        kernels = f"; {memory_of(item).kernel_path}" if field == "peak_live_bytes" else ""
        return Cell(value, mib(value), f"{value:,} bytes{spread}{_by_rank(item, field)}{kernels}", item)

    return measure


def _by_rank(item: Item, field: Bytes) -> str:
    """What each process of a cell of several devices held, where it is known."""
    held = [(one.rank, getattr(one, field, None)) for one in memory_of(item).ranks]
    return "".join(f"; rank {rank}: {mib(value)} MiB" for rank, value in held if value is not None)


def byte_ratio(field: Bytes) -> Measure:
    """Column of baseline bytes / method bytes, of the same seed.

    Args:
        field: name in the memory block.
    """

    def measure(group: Group, row: Row) -> Cell:
        base, item = group.baseline(row), row.first("memory")
        if item is None:
            return missing(row, "memory")
        if isinstance(base, str):
            return absent(base)
        other = base.with_block("memory").get(item.record.spec.seed)
        if other is None:
            return absent(f"the baseline {row.spec.baseline} has no memory at this seed: {base.why_absent('memory')}")
        return _byte_ratio(item, other, field)

    return measure


def _byte_ratio(item: Item, base: Item, field: Bytes) -> Cell:
    ours, theirs = getattr(memory_of(item), field), getattr(memory_of(base), field)
    if ours is None or theirs is None:
        blank = item if ours is None else base
        return absent(f"{blank.record.spec.method.label}: {memory_of(blank).reasons[field]}", item)
    paths = memory_of(item).kernel_path, memory_of(base).kernel_path
    if paths[0] != paths[1]:
        return absent(f"other neuron kernels than the baseline: {paths[0]} against {paths[1]}", item)
    if ours == 0:
        return absent("the method holds no such bytes: nothing to divide by", item)
    name = base.record.spec.method.label
    return Cell(theirs / ours, times(theirs / ours), f"{name} {mib(theirs)} MiB / {mib(ours)} MiB", base)


def step_time(group: Group, row: Row) -> Cell:
    """Median step time of the lowest seed, with its stability verdict."""
    item = row.first("timing")
    if item is None:
        return missing(row, "timing")
    timing = timing_of(item)
    title = (
        f"median of {len(timing.samples_s)} steps; interquartile range {milliseconds(timing.iqr_s)} ms; 95 % interval "
        f"{milliseconds(timing.ci_low_s)} to {milliseconds(timing.ci_high_s)} ms; {timing.samples_per_s:.1f} samples/s"
    ) + "".join(f"; rank {one.rank}: {milliseconds(one.step_time_s)} ms" for one in timing.ranks)
    why = "; ".join(timing.disturbances) or f"coefficient of variation {timing.cv:.3f}, drift {timing.drift:+.3f}"
    marks: dict[str, str] = {} if timing.verdict == "stable" else {timing.verdict: why}
    extra = {"verdict": timing.verdict, "low": timing.ci_low_s, "high": timing.ci_high_s}
    return Cell(timing.step_time_s, milliseconds(timing.step_time_s), title, item, marks, extra)


def time_ratio(group: Group, row: Row) -> Cell:
    """Step time / baseline's, from rounds interleaved with it where it fitted; otherwise marked unpaired."""
    item = row.first("timing")
    if item is None:
        return missing(row, "timing")
    timing = timing_of(item)
    if timing.ratio is not None and timing.baseline == row.spec.baseline:
        return _recorded_ratio(item, timing)
    base = group.baseline(row)
    if isinstance(base, str):
        return absent(base)
    other = base.with_block("timing").get(item.record.spec.seed)
    if other is None:
        return absent(f"the baseline {row.spec.baseline} has no time at this seed: {base.why_absent('timing')}")
    if other is item:
        return Cell(1.0, times(1.0), "the baseline itself", item)
    why = f"not interleaved with {timing.baseline}: {timing.reasons.get('ratio', 'rounds of both did not fit')}"
    value = timing.step_time_s / timing_of(other).step_time_s
    return Cell(value, times(value), "median / median of another process; no interval", other, {"unpaired": why})


def _recorded_ratio(item: Item, timing: Timing) -> Cell:
    assert timing.ratio is not None
    text, how = times(timing.ratio), "rounds interleaved with" if timing.paired else "medians, not interleaved with"
    title = f"{how} {timing.baseline}"
    if timing.ratio_low is not None and timing.ratio_high is not None:
        text += f" [{timing.ratio_low:.2f}, {timing.ratio_high:.2f}]"
        title += "; 95 % interval in brackets"
    marks = {} if timing.paired else {"unpaired": title}
    return Cell(timing.ratio, text, title, item, marks, {"low": timing.ratio_low, "high": timing.ratio_high})


def energy(group: Group, row: Row) -> Cell:
    """Energy of a step, from the device's counter."""
    item = row.first("timing")
    if item is None:
        return missing(row, "timing")
    value = timing_of(item).energy_per_step_j
    if value is None:
        return absent(timing_of(item).reasons["energy_per_step_j"], item, asked=row.spec.device == "cuda")
    return Cell(value, f"{value:.3g}", "over the timed window", item)


def accuracies(row: Row) -> dict[int, float]:
    """Final test accuracy (a fraction) by seed."""
    found = {}
    for seed, item in row.with_block("training").items():
        training = item.record.training
        if training is not None and training.final_test_accuracy is not None:
            found[seed] = training.final_test_accuracy
    return found


def accuracy(group: Group, row: Row) -> Cell:
    """Final test accuracy: mean over seeds with its t-interval."""
    values = accuracies(row)
    interval = t_interval(values.values())
    item = row.first("training")
    if interval is None:
        training = item.record.training if item else None
        return absent(training.reasons["final_test_accuracy"], item) if training else missing(row, "training")
    asked = {i.record.spec.seed for i in row.items if "train" in i.record.spec.phases}
    lost = sorted(asked - values.keys())
    marks = {f"{len(lost)} lost": f"no final accuracy for seed {', '.join(map(str, lost))}"} if lost else {}
    spread = "" if interval.half is None else f" \u00b1 {percent(interval.half)}"
    each = ", ".join(f"seed {seed}: {percent(value)}" for seed, value in sorted(values.items()))
    title = f"{each}; " + ("mean and 95 % t-interval" if spread else "a single seed has no interval")
    extra = {"low": interval.low, "high": interval.high, "seeds": interval.n}
    return Cell(interval.mean, f"{percent(interval.mean)}{spread} (n={interval.n})", title, item, marks, extra)


def accuracy_difference(group: Group, row: Row) -> Cell:
    """Mean of per-seed accuracy differences to the baseline, with interval and equivalence verdict."""
    base = group.baseline(row)
    if row.first("training") is None:
        return missing(row, "training")
    if isinstance(base, str):
        return absent(base)
    if base is row:
        return absent("the baseline itself")
    difference = paired_difference(accuracies(row), accuracies(base))
    if difference is None:
        return absent(f"no seed for which both this row and {row.spec.baseline} have a final accuracy")
    verdict = equivalence(difference)
    spread = "" if difference.half is None else f" \u00b1 {percent(difference.half)}"
    margin = f"{100 * EQUIVALENCE_MARGIN:g} percentage point"
    title = f"paired over {difference.n} seeds against {row.spec.baseline}; {verdict} at a margin of {margin}"
    marks: dict[str, str] = {} if verdict == "undecided" else {verdict: title}
    extra = {"low": difference.low, "high": difference.high, "seeds": difference.n, "verdict": verdict}
    return Cell(difference.mean, points(difference.mean) + spread, title, row.first("training"), marks, extra)


def fidelity_at(row: Row, at: Literal["initial", "trained"]) -> tuple[Item, Fidelity] | None:
    """The lowest seed's gradient comparison at one point of training.

    Args:
        row: a method's records.
        at: before or after training.
    """
    # A seed may have two records: one that measured, and one that trained and compared again afterwards.
    found = [(item, block) for item in row.items for block in item.record.fidelity if block.at == at]
    lowest = min((item.record.spec.seed for item, _ in found), default=None)
    return next((pair for pair in reversed(found) if pair[0].record.spec.seed == lowest), None)


def gradient_error(at: Literal["initial", "trained"]) -> Measure:
    """Column of the relative L2 error of the gradient against BPTT of the prepared model.

    Args:
        at: before or after training.
    """

    def measure(group: Group, row: Row) -> Cell:
        found = fidelity_at(row, at)
        if found is None:
            untrained = at == "trained" and row.first("fidelity") is not None
            return missing(row, "training" if untrained else "fidelity")
        item, fidelity = found
        silent = ", ".join(fidelity.silent_layers)
        marks = {"silent": f"these layers hardly fire, their gradients say little: {silent}"} if silent else {}
        title = f"against {fidelity.reference}; largest absolute error {science(fidelity.max_abs)}"
        return Cell(fidelity.relative_l2, science(fidelity.relative_l2), title, item, marks)

    return measure


def cosine(group: Group, row: Row) -> Cell:
    """Cosine between the gradient and BPTT's at initialisation."""
    found = fidelity_at(row, "initial")
    if found is None:
        return missing(row, "fidelity")
    item, fidelity = found
    if fidelity.cosine is None:
        return absent(fidelity.reasons["cosine"], item)
    return Cell(fidelity.cosine, f"{fidelity.cosine:.4f}", "cosine with BPTT's gradient at initialisation", item)


def promise(group: Group, row: Row) -> Cell:
    """Whether a method that promises exact gradients keeps that within the tolerance, before and after training."""
    kind, numerics = row.promises.get("gradient"), row.promises.get("numerics")
    found = [f for at in ("initial", "trained") if (f := fidelity_at(row, at))]
    if not found:
        return missing(row, "fidelity")
    if kind is None:
        return absent("the record names no promise", row.items[0])
    worst_item, worst = max(found, key=lambda pair: pair[1].relative_l2 / pair[1].tolerance)
    title = f"largest error {science(worst.relative_l2)} ({worst.at}), tolerance {science(worst.tolerance)}"
    extra = {"tolerance": worst.tolerance}
    if kind != "exact":
        return Cell("biased", "biased, as it says", title, worst_item, extra=extra)
    if numerics == "reduced" and not worst.exact:
        return Cell("reduced", "reduced numerics", f"{title}; not held to it", worst_item, extra=extra)
    kept = all(fidelity.exact for _, fidelity in found)
    marks = {} if kept else {"broken": title}
    return Cell("kept" if kept else "broken", "exact \u2713" if kept else "not exact", title, worst_item, marks, extra)
