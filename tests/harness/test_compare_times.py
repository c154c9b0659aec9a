"""Times of two stores: judged by ratios to a baseline timed in turn, told where there are none."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from harness import cli
from harness.compare import Limits, compare
from harness.compare.comparing import histories
from harness.compare.sides import RUN_TO_RUN, Noise, pair, run_to_run, shifts
from harness.record import Record, Timing
from harness.spec import Ref
from harness.store import Store
from tests.harness.samples import sample_provenance, sample_record, sample_spec, sample_timing

BPTT = Ref(name="bptt")
NO_RATIO = ("baseline_step_time_s", "ratio", "ratio_low", "ratio_high")

MEASURED = [
    ((1.728, 1.615, 1.882), (1.629, 1.590, 1.851)),
    ((1.796, 1.462, 2.519), (1.613, 1.508, 1.726)),
    ((1.633, 1.593, 1.828), (1.709, 1.433, 1.967)),
    ((1.722, 1.327, 1.981), (1.546, 1.399, 1.907)),
    ((1.570, 1.370, 1.864), (1.662, 1.501, 1.726)),
    ((1.717, 1.579, 1.908), (1.881, 1.637, 2.078)),
    ((1.570, 1.502, 1.796), (2.190, 1.981, 2.533)),
    ((1.197, 1.065, 1.236), (1.258, 0.985, 1.542)),
    ((1.183, 1.047, 1.255), (1.064, 1.025, 1.115)),
    ((0.882, 0.791, 1.075), (1.103, 0.942, 1.197)),
    ((1.202, 1.149, 1.283), (1.300, 1.083, 1.475)),
    ((1.214, 1.171, 1.369), (1.440, 1.265, 1.526)),
]
"""Ratios and their intervals in two runs of the same code on two cores full of other work: bptt, sltt and
checkpoint-compress of the suite quick, all marked disturbed. The steps themselves took 1.0 to 3.2 times as long."""


def timing(ratio: float = 1.323, spread: float = 0.017, base: float = 0.0161, **changes: Any) -> Timing:
    """Paired: the interval's ends are a share of ``spread`` away."""
    step = ratio * base
    fields: dict[str, Any] = {
        "ratio": ratio,
        "ratio_low": ratio * (1 - spread),
        "ratio_high": ratio * (1 + spread),
        "baseline_step_time_s": base,
        "step_time_s": step,
        "ci_low_s": 0.99 * step,
        "ci_high_s": 1.01 * step,
    }
    return sample_timing(**{**fields, **changes})


def unpaired(step: float, width: float = 0.01, **changes: Any) -> Timing:
    """Without a baseline beside it."""
    reasons = dict.fromkeys((*NO_RATIO, "energy_per_step_j"), "nothing was timed beside it")
    fields = dict.fromkeys(NO_RATIO) | {"paired": False, "reasons": reasons, **changes}
    return sample_timing(step_time_s=step, ci_low_s=(1 - width) * step, ci_high_s=(1 + width) * step, **fields)


def record(found: Timing, steps: int = 8, run: int = 0, **changes: Any) -> Record:
    """A run of the cell with so many steps."""
    spec = changes.pop("spec", sample_spec(T=steps))
    return sample_record(spec=spec, timing=found, run_id=f"20261121T065101Z-{run:08x}", **changes)


def baseline(found: Timing, steps: int = 8) -> Record:
    return record(found, spec=sample_spec(method=BPTT, T=steps))


def by_metric(before: Record, after: Record, **limits: Any) -> dict[str, Any]:
    """Deltas of a cell's times."""
    found = compare([before], [after], Limits(**limits), ["ratio", "time"])
    return {delta.metric: delta for row in found.rows for delta in row.deltas}


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (1.323, "same"),
        (1.38, "same"),  # within the threshold
        (1.45, "same"),  # beyond the threshold, but what two runs differ by
        (1.55, "worse"),
        (1.21, "same"),
        (1.12, "better"),
    ],
)
def test_a_ratio_is_judged_beyond_threshold_and_chance(ratio, verdict):
    found = by_metric(record(timing()), record(timing(ratio)))
    assert (found["ratio"].verdict, found["ratio"].at) == (verdict, "bptt")
    assert (found["ratio"].before, found["ratio"].after) == (1.323, ratio)
    assert found["time"].verdict == "not judged"
    assert found["time"].note == "its ratio to bptt is"


def test_the_note_holds_what_the_ratio_was_made_of():
    delta = by_metric(record(timing()), record(timing(2.0)))["ratio"]
    assert delta.note == "beyond chance, which reaches 1.12 times; step 21.3 ms -> 32.2 ms, bptt 16.1 ms -> 16.1 ms"


def test_wide_intervals_and_other_work_raise_the_limit():
    assert by_metric(record(timing()), record(timing(1.55, spread=0.2)))["ratio"].verdict == "same"
    disturbed = timing(1.55, verdict="disturbed", disturbances=["others"])
    assert by_metric(record(timing()), record(disturbed))["ratio"].verdict == "same"
    assert by_metric(record(timing()), record(disturbed.model_copy(update={"ratio": 2.0})))["ratio"].verdict == "worse"


def test_a_slower_machine_is_no_regression():
    before = [baseline(unpaired(0.016)), *(record(timing(base=0.016), steps) for steps in (2, 4))]
    after = [baseline(unpaired(0.048)), *(record(timing(base=0.048), steps) for steps in (2, 4))]
    found = compare(before, after)
    assert not found.worse
    (shift,) = found.shifts
    assert (shift.baseline, shift.device, shift.count) == ("bptt", "cpu", 3)
    assert (shift.factor, shift.low, shift.high, shift.ratios) == pytest.approx((3.0, 3.0, 3.0, 1.0))


def test_a_slower_baseline_is_told_beside_better_ratios():
    """Its methods' ratios fall; nothing says whether it or the machine is slower, but the line is there."""
    steps = (1, 2, 3, 4)
    before = [baseline(unpaired(0.016)), *(record(timing(2.0, base=0.016), T) for T in steps)]
    after = [baseline(unpaired(0.032)), *(record(timing(1.0, base=0.032), T) for T in steps)]
    found = compare(before, after, metrics=["ratio", "time"])
    assert [delta.verdict for row in found.rows for delta in row.deltas if delta.metric == "ratio"] == ["better"] * 4
    assert [(shift.factor, shift.ratios) for shift in found.shifts] == [pytest.approx((2.0, 0.5))]
    assert not found.worse


def test_shifts_keep_devices_apart():
    def timed(device: str, base: float) -> Any:
        return record(timing(base=base), spec=sample_spec(device=device))

    pairs = [pair([timed(device, 0.01)], [timed(device, base)]) for device, base in (("cpu", 0.01), ("cuda", 0.02))]
    found = {shift.device: shift.factor for shift in shifts(each for each in pairs if each)}
    assert found == pytest.approx({"cpu": 1.0, "cuda": 2.0})


def test_the_steps_of_a_cell_without_a_ratio_are_judged_when_asked():
    before, after = baseline(unpaired(0.016)), baseline(unpaired(0.024))
    assert by_metric(before, after)["time"].verdict == "not judged"
    assert by_metric(before, after, absolute=True)["time"].verdict == "worse"
    assert by_metric(after, before, absolute=True)["time"].verdict == "better"


@pytest.mark.parametrize(
    ("step", "changes", "verdict", "note"),
    [
        (0.0164, {}, "same", ""),  # beyond the intervals, not beyond the threshold
        (0.0200, {"width": 0.25}, "same", "the intervals overlap"),
        (0.0200, {"verdict": "disturbed", "disturbances": ["others"]}, "not judged", "disturbed in B"),
    ],
)
def test_by_themselves_times_differ_where_intervals_and_threshold_say_so(step, changes, verdict, note):
    delta = by_metric(baseline(unpaired(0.016)), baseline(unpaired(step, **changes)), absolute=True)["time"]
    assert (delta.verdict, delta.note) == (verdict, note)


def test_a_method_whose_baseline_did_not_fit_is_told():
    found = compare([record(unpaired(0.016))], [record(unpaired(0.024))], metrics=["time"])
    assert [(row.kind, row.deltas[0].verdict, row.deltas[0].note) for row in found.rows] == [
        ("changed", "changed", "not judged: no ratio to bptt")
    ]
    assert not found.shifts, "a method's time says nothing about the baseline"


def test_a_ratio_in_one_store_only_is_a_change():
    found = by_metric(record(timing()), record(unpaired(0.0213)))
    assert (found["ratio"].verdict, found["ratio"].note) == ("changed", "no value in B")
    assert found["time"].verdict == "same"


def test_elsewhere_neither_is_compared_nor_told():
    away = record(timing(9.0), provenance=sample_provenance() | {"threads": 8}, fingerprint="f" * 16)
    found = compare([record(timing())], [away], metrics=["ratio", "time"])
    assert {delta.verdict for row in found.rows for delta in row.deltas} == {"not compared"}
    assert not found.shifts
    assert not found.ratio_limits


def test_the_bar_rises_with_the_number_of_ratios():
    one = pair([record(timing())], [record(timing())])
    assert one is not None
    few, many = Noise(1, None).limit(one), Noise(50, None).limit(one)
    assert 1.11 < few < 1.13
    assert 1.20 < many < 1.22
    assert Noise(1, 0.0).limit(one) < few


def repeated(ratios: list[float], steps: int, **changes: Any) -> list[Record]:
    return [record(timing(ratio, spread=1e-6), steps, run, **changes) for run, ratio in enumerate(ratios)]


def test_repeated_runs_measure_the_scatter():
    """Two runs of six cells, 2 % apart: a standard deviation of ln(1.02) / sqrt(2)."""
    runs = [repeated([1.30, 1.30 * 1.02], steps) for steps in range(1, 7)]
    assert run_to_run(runs) == pytest.approx(math.log(1.02) / math.sqrt(2), rel=1e-3)
    assert run_to_run(runs[:5]) is None, "too few"


def test_repeated_runs_sharpen_the_judgement():
    steps = range(1, 7)
    one = [each for T in steps for each in repeated([1.323, 1.33], T)]
    other = [each for T in steps for each in repeated([1.323, 1.33] if T > 1 else [1.45, 1.46], T)]
    found = compare(one, other, metrics=["ratio"])
    assert [row.spec.T for row in found.worse] == [1], "1.10 times is chance for single runs only"
    singles = compare(one[::2], other[::2], metrics=["ratio"])
    assert not singles.worse
    assert max(found.ratio_limits) < 1.06 < 1.15 < min(singles.ratio_limits)
    (delta,) = found.worse[0].deltas
    assert delta.after == pytest.approx(math.sqrt(1.45 * 1.46))


def test_scatter_that_the_intervals_explain_is_not_counted_twice():
    runs = [[record(timing(ratio, spread=0.2), steps) for ratio in (1.3, 1.32)] for steps in range(1, 8)]
    assert run_to_run(runs) == 0.0


def test_runs_of_older_code_are_not_averaged():
    old = record(timing(9.0), run=0, fingerprint="f" * 16)
    new = record(timing(), run=1)
    (runs,) = histories([new, old]).values()
    assert runs == [new]
    assert by_metric(new, new)["ratio"].verdict == "same"
    assert not compare([old, new], [new]).worse


def test_two_measured_runs_of_the_same_code_hold_nothing_worse():
    rows = [
        [
            record(timing(ratio, ratio_low=low, ratio_high=high, verdict="disturbed", disturbances=["x"]), steps)
            for steps, (ratio, low, high) in enumerate(side, 1)
        ]
        for side in zip(*MEASURED, strict=True)
    ]
    assert not compare(*rows).worse
    assert not compare(*reversed(rows)).worse


def test_chance_makes_something_worse_in_one_of_twenty_comparisons():
    """Twenty cells whose ratios scatter as assumed, on a machine whose speed changes from cell to cell."""
    rng = np.random.default_rng(0)
    cells = [record(timing(spread=1e-6), steps) for steps in range(1, 21)]

    def run(slower: float = 1.0) -> list[Record]:
        found = []
        for i, cell in enumerate(cells):
            ratio = 1.3 * math.exp(rng.normal(0, RUN_TO_RUN)) * (slower if i == 0 else 1.0)
            found.append(cell.model_copy(update={"timing": timing(ratio, 1e-6, 0.016 * math.exp(rng.normal(0, 0.3)))}))
        return found

    alarms = sum(bool(compare(run(), run(), metrics=["ratio"]).worse) for _ in range(200))
    assert alarms <= 12, "2.5 % of the comparisons on this side are expected, five; 12 have a chance of one in 400"
    found = [compare(run(), run(1.6), metrics=["ratio"]).worse for _ in range(20)]
    assert all(1 in [row.spec.T for row in worse] for worse in found)


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.snnbench, ["compare", *map(str, arguments)])


def store(folder: Any, *records: Record) -> Any:
    for each in records:
        Store(folder).write(each)
    return folder


@pytest.fixture
def stores(tmp_path):
    """B: one ratio is worse, everything takes 1.5 times as long."""
    a = store(tmp_path / "a", baseline(unpaired(0.016)), record(timing(base=0.016), 2), record(timing(base=0.016), 4))
    slow = {"base": 0.024}
    b = store(tmp_path / "b", baseline(unpaired(0.024)), record(timing(2.0, **slow), 2), record(timing(**slow), 4))
    return a, b


def test_the_command_says_what_it_judged_and_what_not(stores):
    said = call(*stores)
    assert said.exit_code == 1
    assert "1 worse" in said.output
    assert "ratio (bptt)" in said.output
    told = "bptt itself takes 1.50 times as long in B (3 timings: 1.50 to 1.50), ratios to it 1.23 times (median); not"
    assert told in " ".join(said.output.split())
    assert "ratios are judged from 1.14 times on (scatter from run to run: assumed" in said.output
    assert call(*stores, "--metric", "time").exit_code == 0
    assert call(*stores, "--metric", "time", "--absolute").exit_code == 1


def test_the_document_holds_it_too(stores):
    found = json.loads(call(*stores, "--format", "json").stdout)
    assert [(shift["baseline"], shift["count"]) for shift in found["shifts"]] == [("bptt", 3)]
    assert found["run_to_run"] is None
    assert len(found["ratio_limits"]) == 2
    assert found["differences"] == []


def test_the_first_lines_tell_what_differs(tmp_path):
    here = sample_provenance()
    there = {
        **here,
        "cpu": {**here["cpu"], "model": "another"},
        "torch": {**here["torch"], "version": "2.12.0", "git": "ab"},
        "packages": {**here["packages"], "torch": "2.12.0"},
        "code": {**here["code"], "sha256": "d4" * 32},
    }
    a = store(tmp_path / "a", record(timing(), 2), record(timing(), 4))
    b = store(tmp_path / "b", *(record(timing(), T, provenance=there, fingerprint="f" * 16) for T in (2, 4)))
    lines = call(a, b).output.splitlines()
    assert lines[2:5] == [
        "differs in 2 cells: cpu.model: AMD EPYC 7B13 -> another",
        "differs in 2 cells: torch.version: 2.13.0+cpu -> 2.12.0",
        f"differs in 2 cells: code.sha256: {'c3' * 6} -> {'d4' * 6}",
    ]
    assert (
        "not compared: ratio, time or allocator's bytes of 2 cells: machine or environment differs" in call(a, b).output
    )


def test_a_gpu_is_told_by_name_and_only_for_cells_on_one(tmp_path):
    def machine(name: str) -> dict[str, Any]:
        return sample_provenance() | {"device": "cuda", "gpu": {"devices": [{"name": name, "uuid": name}]}}

    on_gpu = sample_spec(device="cuda")
    sides = [record(timing(), spec=on_gpu, provenance=machine(name)) for name in ("one", "other")]
    told = [(each.fact, each.before, each.after) for each in compare(sides[:1], sides[1:]).places]
    assert told == [("gpu.devices", ("one",), ("other",))]
    on_cpu = [each.model_copy(update={"provenance": each.provenance | {"device": "cpu"}}) for each in sides]
    assert not compare(on_cpu[:1], on_cpu[1:]).places
