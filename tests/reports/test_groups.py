"""What may share a ratio, and what is shown apart."""

import dataclasses

import pytest

from harness.spec import LossSpec, Recipe, Ref
from reports.collect import mark_stale
from reports.groups import group, latest
from tests.reports import builders as b

BPTT, CHECKPOINT = b.METHODS[0], b.METHODS[1]


def groups_of(*records):
    return group(latest(b.items(records)))


def test_methods_and_seeds_share_a_group_and_seeds_share_a_row():
    (only,) = groups_of(b.record(BPTT, 0), b.record(CHECKPOINT, 1), b.record(CHECKPOINT, 2, seed=1))
    assert [len(row.items) for row in only.rows] == [1, 2]
    assert [row.spec.method.name for row in only.rows] == ["bptt", "checkpoint"]


def test_phases_of_one_method_share_a_row():
    (only,) = groups_of(b.record(BPTT, 0, phases=("memory",)), b.record(BPTT, 1, phases=("train",), seed=1))
    assert len(only.rows) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"T": 4},
        {"batch": 8},
        {"model": Ref(name="vgg", options={"channels": [32, 64], "tau": 1.1})},
        {"data": Ref(name="digits", options={"encoding": "rate"})},
        {"loss": LossSpec(kind="time_mean")},
        {"recipe": Recipe(optimizer="adam", lr=0.1)},
        {"precision": "amp-bf16"},
        {"device": "cuda"},
        {"profile": "gpu"},
        {"predicted": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_no_ratio_across(change):
    found = groups_of(b.record(BPTT, 0), b.record(CHECKPOINT, 1, **change))
    assert len(found) == 2
    ours = next(row for g in found for row in g.rows if row.spec.method.name == "checkpoint")
    theirs = next(g for g in found if ours in g.rows)
    assert "no record of the baseline bptt" in theirs.baseline(ours)


@pytest.mark.parametrize("change", [{"fingerprint": "f" * 16}, {"normalisation": "per_step"}], ids=["code", "norm"])
def test_no_ratio_across_environments_and_normalisations(change):
    other = b.record(CHECKPOINT, 1).model_copy(update=change)
    assert len(groups_of(b.record(BPTT, 0), other)) == 2


def test_a_failed_build_joins_the_group_of_its_spec():
    (only,) = groups_of(b.record(BPTT, 0), b.failed(CHECKPOINT, 1, "error", "build"))
    assert only.normalisation == "over_time"
    assert [row.status for row in only.rows] == ["ok", "error"]


def test_a_failed_build_stays_apart_where_its_mode_is_unknown():
    other_mode = b.record(CHECKPOINT, 2).model_copy(update={"normalisation": "per_step"})
    found = groups_of(b.record(BPTT, 0), other_mode, b.failed(b.METHODS[3], 1, "error", "build"))
    assert sorted(str(g.normalisation) for g in found) == ["None", "over_time", "per_step"]


def test_several_variants_of_the_baseline_give_no_ratio():
    variant = dataclasses.replace(BPTT, ref=Ref(name="bptt", options={"kernel": "x"}))
    (only,) = groups_of(b.record(BPTT, 0), b.record(variant, 1), b.record(CHECKPOINT, 2))
    ours = next(row for row in only.rows if row.spec.method.name == "checkpoint")
    assert "2 variants of the baseline bptt" in only.baseline(ours)


def test_latest_run_of_a_cell_counts_per_fingerprint():
    first, again = b.failed(BPTT, 0), b.record(BPTT, 1)
    old_code = b.record(BPTT, 2).model_copy(update={"fingerprint": "0" * 16})
    kept = latest(b.items([again, first, old_code]))
    assert {item.record.run_id for item in kept} == {again.run_id, old_code.run_id}


def test_older_fingerprints_of_a_machine_are_stale():
    old = b.record(BPTT, 0).model_copy(update={"fingerprint": "0" * 16})
    new = b.record(BPTT, 1)
    marked = {item.record.fingerprint: item.stale for item in mark_stale(b.items([old, new]))}
    assert marked == {"0" * 16: True, new.fingerprint: False}


def test_another_machine_is_not_stale():
    here, there = b.record(BPTT, 0), b.record(BPTT, 1)
    provenance = {**there.provenance, "cpu": {"model": "another processor"}}
    there = there.model_copy(update={"fingerprint": "0" * 16, "provenance": provenance})
    assert [item.stale for item in mark_stale(b.items([here, there]))] == [False, False]


def test_stale_groups_come_last():
    old = b.record(BPTT, 0, T=2).model_copy(update={"fingerprint": "0" * 16})
    found = group(mark_stale(b.items([old, b.record(BPTT, 1)])))
    assert [g.stale for g in found] == [False, True]


@pytest.mark.parametrize(
    ("record", "block", "reason"),
    [
        (b.failed(BPTT, 0), "memory", "oom in memory: RuntimeError: you tried"),
        (b.failed(BPTT, 0), "timing", "oom before time"),
        (b.failed(BPTT, 0, "unsupported", "build"), "memory", "unsupported in build: it was unsupported"),
        (
            b.record(BPTT, 0, phases=("memory",)).model_copy(update={"training": None}),
            "training",
            "no cell of this row",
        ),
    ],
)
def test_absence_has_a_reason(record, block, reason):
    (only,) = groups_of(record)
    assert only.rows[0].why_absent(block).startswith(reason)
