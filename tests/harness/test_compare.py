"""Two stores beside each other: classes of cells, verdicts on measures, what may not be compared."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import cli
from harness.compare import METRICS, Limits, compare
from harness.compare.measures import change, environment_differences
from harness.provenance import fingerprint
from harness.record import PhaseResult, Record
from harness.spec import Recipe
from harness.store import Store
from tests.harness.samples import (
    sample_fidelity,
    sample_memory,
    sample_provenance,
    sample_record,
    sample_spec,
    sample_timing,
    sample_training,
)

PEAK = sample_memory().peak_live_bytes
FAILED = {"time": PhaseResult(status="oom", reason="it did not fit")}
MIRROR = {"failed now": "fixed", "fixed": "failed now", "missing": "new", "new": "missing"}
REVERSE = {"worse": "better", "better": "worse"}


def peak(size: int | None) -> Any:
    memory = sample_memory()
    reasons = memory.reasons | ({} if size else {"peak_live_bytes": "nothing counts it"})
    return memory.model_copy(update={"peak_live_bytes": size, "reasons": reasons})


def trained(accuracy: float) -> Any:
    return sample_training().model_copy(update={"final_test_accuracy": accuracy})


def only(before: Record, after: Record, metric: str, **limits: float) -> Any:
    """The one delta of a measure."""
    found = compare([before], [after], Limits(**limits), [metric])
    return [delta for row in found.rows for delta in row.deltas]


def machine(**facts: Any) -> dict[str, Any]:
    """Fields of a record made elsewhere."""
    provenance = sample_provenance() | facts
    return {"provenance": provenance, "fingerprint": fingerprint(provenance)}


HERE = machine()


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.snnbench, ["compare", *map(str, arguments)])


def store(folder: Any, *records: Record) -> Any:
    for record in records:
        Store(folder).write(record)
    return folder


def test_a_record_against_itself_is_the_same():
    found = compare([sample_record()], [sample_record()])
    assert [row.kind for row in found.rows] == ["same", "same"], "the cell, and its accuracy over seeds"
    assert {delta.metric for row in found.rows for delta in row.deltas} == set(METRICS) - {"allocated"}
    assert not found.worse


@pytest.mark.parametrize(
    ("size", "kind", "verdict"),
    [
        (PEAK, "same", "same"),
        (PEAK + 1, "changed", "changed"),
        (PEAK - 1, "changed", "changed"),
        (PEAK * 2, "changed", "worse"),
        (PEAK // 2, "changed", "better"),
        (None, "changed", "changed"),
    ],
)
def test_bytes_are_compared_to_the_byte(size, kind, verdict):
    found = compare([sample_record()], [sample_record(memory=peak(size))], metrics=["peak"])
    assert [(row.kind, row.deltas[0].verdict) for row in found.rows] == [(kind, verdict)]
    assert bool(found.worse) == (verdict == "worse")


def test_the_threshold_is_a_share():
    one, other = sample_record(memory=peak(100_000)), sample_record(memory=peak(104_000))
    assert only(one, other, "peak")[0].verdict == "changed"
    assert only(one, other, "peak", threshold=0.04)[0].verdict == "changed", "up to the threshold"
    assert only(one, other, "peak", threshold=0.039)[0].verdict == "worse"
    assert only(other, one, "peak", threshold=0.039)[0].verdict == "better"


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"cpu": {"model": "another"}}, ["cpu.model"]),
        ({"threads": 8}, ["threads"]),
        ({"packages": {"torch": "2.12.0"}}, ["packages"]),
        ({"code": {"sha256": "another"}}, []),
        ({"load_average": [9.0]}, []),
        ({"gpu": {"devices": [{"name": "a GPU"}]}}, []),  # a CPU's record does not depend on it
    ],
)
def test_what_makes_another_environment(facts, named):
    assert environment_differences(sample_provenance(), sample_provenance() | facts) == named


def test_elsewhere_bytes_are_compared_and_times_are_not():
    away = machine(cpu={"model": "another"})
    slow = sample_timing(step_time_s=1.0, ci_low_s=0.9, ci_high_s=1.1)
    found = compare([sample_record(**HERE)], [sample_record(**away, timing=slow, memory=peak(PEAK * 2))])
    verdicts = {delta.metric: delta for delta in found.rows[0].deltas}
    assert verdicts["peak"].verdict == "worse"
    assert (verdicts["time"].verdict, verdicts["time"].note) == (
        "not compared",
        "machine or environment differs: cpu.model",
    )


def test_the_allocators_bytes_vary_from_run_to_run():
    on_gpu = {"spec": sample_spec(device="cuda")}

    def allocated(size: int) -> Record:
        memory = sample_memory()
        return sample_record(**on_gpu, memory=memory.model_copy(update={"cuda_allocated_bytes": size}))

    assert only(allocated(1000), allocated(1010), "allocated")[0].verdict == "same"
    assert only(allocated(1000), allocated(1100), "allocated")[0].verdict == "worse"


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ({"relative_l2": 1e-7}, {"relative_l2": 9e-6}, "same"),  # both are rounding
        ({}, {"exact": False, "relative_l2": 2e-5}, "worse"),
        ({"exact": False, "relative_l2": 2e-5}, {}, "better"),
        ({"exact": False, "relative_l2": 0.40}, {"exact": False, "relative_l2": 0.41}, "same"),
        ({"exact": False, "relative_l2": 0.40}, {"exact": False, "relative_l2": 0.50}, "worse"),
    ],
)
def test_a_gradient_is_worse_when_it_is_no_longer_exact_or_further_off(before, after, verdict):
    one, other = (sample_record(fidelity=[sample_fidelity(**changes)]) for changes in (before, after))
    (delta,) = only(one, other, "fidelity")
    assert (delta.verdict, delta.at) == (verdict, "initial")


def seeds(values: dict[int, float], **changes: Any) -> list[Record]:
    return [
        sample_record(spec=sample_spec(seed=seed), training=trained(value), **changes) for seed, value in values.items()
    ]


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ({0: 0.9, 1: 0.92, 2: 0.91}, {0: 0.9, 1: 0.92, 2: 0.91}, "same"),
        ({0: 0.9, 1: 0.92, 2: 0.91}, {0: 0.896, 1: 0.917, 2: 0.905}, "same"),  # within a point
        ({0: 0.9, 1: 0.92, 2: 0.91}, {0: 0.87, 1: 0.9, 2: 0.885}, "worse"),
        ({0: 0.87, 1: 0.9, 2: 0.885}, {0: 0.9, 1: 0.92, 2: 0.91}, "better"),
        ({0: 0.9, 1: 0.92, 2: 0.91}, {0: 0.7, 1: 0.95, 2: 0.91}, "changed"),  # the seeds disagree
        ({0: 0.9, 1: 0.8}, {0: 0.8, 1: 0.7}, "worse"),  # no spread at all
        ({0: 0.9}, {0: 0.8}, "worse"),
    ],
)
def test_accuracies_are_paired_by_seed(before, after, verdict):
    (row,) = [row for row in compare(seeds(before), seeds(after)).rows if row.deltas[0].metric == "accuracy"]
    (delta,) = row.deltas
    assert delta.verdict == verdict
    assert row.kind == ("same" if verdict == "same" else "changed")
    assert delta.before == pytest.approx(sum(before.values()) / len(before))


def test_only_seeds_that_both_have_are_paired():
    found = compare(seeds({0: 0.9, 1: 0.1}), seeds({1: 0.1, 2: 0.9}), metrics=["accuracy"])
    (delta,) = [delta for row in found.rows for delta in row.deltas]
    assert (delta.note, delta.before, delta.after) == ("seed 1", 0.1, 0.1)
    assert found.counts == {"missing": 1, "new": 1, "same": 2}


def test_accuracies_on_other_data_are_not_compared():
    other = sample_record().data | {"sha256": "00" * 32}
    found = compare(seeds({0: 0.9}), seeds({0: 0.5}, data=other), metrics=["accuracy"])
    assert [delta.verdict for row in found.rows for delta in row.deltas] == ["not compared"]


def test_seeds_of_an_older_fingerprint_are_not_pooled():
    old = sample_record(spec=sample_spec(seed=1), training=trained(0.1), fingerprint="f" * 16, created="2026-01-01")
    found = compare([old, *seeds({0: 0.9})], [*seeds({0: 0.9, 1: 0.9})], metrics=["accuracy"])
    assert [delta.note for row in found.rows for delta in row.deltas] == ["seed 0"]


def test_classes_of_cells():
    specs = [sample_spec(T=steps) for steps in (1, 2, 4, 8, 16)]
    phases = sample_record().phases
    good = [sample_record(spec=spec) for spec in specs]
    bad = [sample_record(spec=spec, status="oom", phases={**phases, **FAILED}, timing=None) for spec in specs]
    found = compare([good[0], good[1], bad[2], bad[3]], [good[1], bad[0], good[2], bad[3], good[4]], metrics=["peak"])
    kinds = {row.spec.T: row.kind for row in found.rows}
    assert kinds == {1: "failed now", 2: "same", 4: "fixed", 8: "same", 16: "new"}
    assert [row.failed for row in found.rows if row.kind == "failed now"] == [("time",)]
    assert [row.spec.T for row in found.worse] == [1]
    assert found.shared == 4


def test_another_phase_failing_in_a_failed_cell_is_found():
    phases = sample_record().phases
    before = sample_record(status="oom", phases={**phases, **FAILED})
    after = sample_record(status="oom", phases={**phases, **FAILED, "memory": PhaseResult(status="oom")}, memory=None)
    (row,) = compare([before], [after], metrics=["peak"]).rows
    assert (row.kind, row.failed, row.fixed) == ("failed now", ("memory",), ())
    assert [(d.before, d.after, d.note) for d in row.deltas] == [(PEAK, None, "no value in B")]


def test_a_process_that_left_no_phases_has_failed():
    (row,) = compare([sample_record()], [sample_record(status="killed", phases={})], metrics=["peak"]).rows
    assert (row.kind, row.after) == ("failed now", "killed")


def test_of_several_runs_the_latest_counts():
    old = sample_record(created="2026-11-20T00:00:00+00:00", run_id="20261120T000000Z-00000000", memory=peak(PEAK * 9))
    assert compare([sample_record(), old], [old, sample_record()], metrics=["peak"]).counts == {"same": 1}


cells = st.builds(
    lambda steps, seed, status, size, error, step, accuracy, here: sample_record(
        spec=sample_spec(T=steps, seed=seed, recipe=Recipe()),
        status=status,
        phases=sample_record().phases | ({"time": PhaseResult(status=status)} if status != "ok" else {}),
        memory=peak(size),
        fidelity=[sample_fidelity(relative_l2=error, exact=error <= 1e-5)],
        timing=sample_timing(
            step_time_s=step,
            ci_low_s=0.95 * step,
            ci_high_s=1.05 * step,
            ratio=step,
            ratio_low=0.95 * step,
            ratio_high=1.05 * step,
        ),
        training=trained(accuracy),
        **(HERE if here else machine(threads=8)),
    ),
    st.sampled_from([1, 2]),
    st.integers(0, 2),
    st.sampled_from(["ok", "oom", "error"]),
    st.integers(1, 10**6),
    st.floats(0.0, 1.0),
    st.floats(1e-3, 1.0),
    st.floats(0.0, 1.0),
    st.booleans(),
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(cells, max_size=5), st.lists(cells, max_size=5), st.floats(0.0, 1.0))
def test_the_other_way_round_everything_is_mirrored(before, after, threshold):
    limits = Limits(threshold)
    there, back = compare(before, after, limits), compare(after, before, limits)
    assert there.shared == back.shared
    mirrored = {(row.spec.hash, "accuracy" in _measures(row)): row for row in back.rows}
    assert len(mirrored) == len(back.rows) == len(there.rows)
    for row in there.rows:
        other = mirrored.get((row.spec.hash, "accuracy" in _measures(row)))
        if other is None:  # the row over seeds goes by the lowest seed of A
            assert "accuracy" in _measures(row)
            continue
        assert other.kind == MIRROR.get(row.kind, row.kind)
        assert (other.before, other.after, other.failed, other.fixed) == (row.after, row.before, row.fixed, row.failed)
        for delta, twin in zip(row.deltas, other.deltas, strict=True):
            if delta.metric != "accuracy":
                assert twin.verdict == REVERSE.get(delta.verdict, delta.verdict)
                assert (twin.before, twin.after) == (delta.after, delta.before)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(cells, max_size=5))
def test_a_store_against_itself_has_no_difference(records):
    found = compare(records, records)
    assert set(found.counts) <= {"same"}
    assert not found.worse


@settings(deadline=None, derandomize=True)
@given(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(0, 2))
def test_a_change_is_symmetric(before, after, threshold):
    assert change(after, before, threshold) == REVERSE.get(
        change(before, after, threshold), change(before, after, threshold)
    )


def _measures(row: Any) -> set[str]:
    return {delta.metric for delta in row.deltas}


@pytest.fixture
def stores(tmp_path):
    """A: three cells; B: one as before, one worse, one failed now, one new."""
    phases = sample_record().phases
    specs = [sample_spec(T=steps) for steps in (2, 4, 8, 16)]
    a = store(tmp_path / "a", *(sample_record(spec=spec) for spec in specs[:3]))
    b = store(
        tmp_path / "b",
        sample_record(spec=specs[0]),
        sample_record(spec=specs[1], memory=peak(2 * PEAK)),
        sample_record(spec=specs[2], status="oom", phases={**phases, **FAILED}, timing=None),
        sample_record(spec=specs[3]),
    )
    return a, b


def test_the_command_tells_what_got_worse(stores):
    said = call(*stores)
    assert said.exit_code == 1
    assert "3 cells in both; 1 failed now, 1 changed, 1 new, 4 same; 2 worse" in said.output
    assert "2.0000" in said.output
    assert [line.split()[-1] for line in said.output.splitlines() if "status" in line and "oom" in line] == ["time"]
    assert "T=2 " not in said.output
    assert "T=2 " in call(*stores, "--all").output


def test_the_command_against_itself_finds_nothing(stores):
    said = call(stores[1], stores[1])
    assert said.exit_code == 0
    assert "4 cells in both; 8 same; nothing worse" in said.output


def test_a_larger_threshold_forgives(stores, tmp_path):
    good = store(tmp_path / "c", sample_record(spec=sample_spec(T=4), memory=peak(PEAK + PEAK // 10)))
    assert call(stores[0], good).exit_code == 1
    assert call(stores[0], good, "--threshold", "10%").exit_code == 0
    assert call(stores[0], good, "--threshold", "0.1").exit_code == 0
    assert call(stores[0], good, "--metric", "time,fidelity").exit_code == 0


def test_formats_hold_the_same(stores):
    table = list(csv.reader(io.StringIO(call(*stores, "--format", "csv").stdout)))
    markdown = call(*stores, "--format", "md").stdout
    assert [len(line) for line in table] == [8] * len(table)
    assert all(line[2] in markdown for line in table)
    found = json.loads(call(*stores, "--format", "json").stdout)
    assert found["counts"] == {"failed now": 1, "changed": 1, "new": 1, "same": 4}
    (worse,) = [row for row in found["rows"] if row["class"] == "changed"]
    (delta,) = [delta for delta in worse["measures"] if delta["metric"] == "peak"]
    assert (delta["before"], delta["after"], delta["verdict"]) == (PEAK, 2 * PEAK, "worse")


def test_the_command_says_what_it_does_not_compare(tmp_path):
    a = store(tmp_path / "a", sample_record(**HERE))
    b = store(tmp_path / "b", sample_record(**machine(threads=8)))
    said = call(a, b)
    assert said.exit_code == 0
    told = "not compared: ratio, time or allocator's bytes of 1 cell: machine or environment differs: threads"
    assert told in said.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--threshold", "much"], "--threshold 'much'"),
        (["--margin", "-1%"], "--margin '-1%'"),
        (["--metric", "peek"], "Did you mean 'peak'"),
        (["--suite", "quik"], "Did you mean 'quick'"),
    ],
)
def test_a_mistake_is_exit_code_2(stores, arguments, expected):
    said = call(*stores, *arguments)
    assert said.exit_code == 2
    assert expected in said.stderr


def test_stores_that_share_nothing_cannot_be_compared(stores, tmp_path):
    other = store(tmp_path / "c", sample_record(spec=sample_spec(T=99, recipe=Recipe(epochs=9))))
    said = call(stores[0], other)
    assert said.exit_code == 2
    assert "no cell is both in" in said.stderr
    assert said.stderr.endswith("; the two nearest differ in T, recipe\n")
    assert call(stores[0], tmp_path / "nowhere").exit_code == 2


def test_a_damaged_record_is_told_and_does_not_stop_it(stores):
    broken = stores[1] / "quick" / "0123456789abcdef" / "20261121T065101Z-00000000.json"
    broken.parent.mkdir()
    broken.write_text("{")
    said = call(*stores)
    assert "damaged record" in said.stderr
    assert said.exit_code == 1
