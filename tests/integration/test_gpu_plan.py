"""The script that confirms ``snnbench plan`` under a cap: sizes, verdicts, files; runs are injected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.spec import CellSpec, Ref
from scripts import gpu_plan
from scripts.gpu_plan import Row
from tests.harness.samples import sample_spec

M, G = 1 << 20, 1 << 30


def peak(batch: int) -> int:
    """Static bytes and so many a sample."""
    return 200 * M + batch * 90 * M


@pytest.mark.parametrize(("batch", "cap"), [(70, 7 * G), (1, 400 * M), (9, G), (30, 3 * G)])
def test_the_larger_batch_cannot_fit(batch: int, cap: int) -> None:
    size, predicted = gpu_plan.larger(batch, cap, peak)
    assert size >= batch * gpu_plan.LARGER
    assert size > batch
    assert predicted == peak(size) > gpu_plan.BEYOND * cap
    assert peak(size - 2) <= gpu_plan.BEYOND * cap or size <= batch * gpu_plan.LARGER + 1  # and no larger than needed


def test_a_staircase_ends_as_well() -> None:
    """Micro-batches: a peak that rises in steps."""
    calls: list[int] = []

    def steps(batch: int) -> int:
        calls.append(batch)
        return 200 * M + batch // 16 * 16 * 90 * M

    size, predicted = gpu_plan.larger(20, 7 * G, steps)
    assert predicted == steps(size) > gpu_plan.BEYOND * 7 * G
    assert len(calls) < 60


def subject() -> CellSpec:
    return sample_spec(data=Ref(name="shape", options={"sample": [1, 8, 8], "classes": 10, "n_train": 64}))


@pytest.mark.parametrize(
    ("planned", "above", "verdict"),
    [
        ("ok", "oom", "confirmed"), ("ok", "ok", "loose"), ("oom", "oom", "refuted"), ("ok", "timeout", "fits"),
        ("error", "oom", "-"), ("skipped", "skipped", "-"),
    ],
)  # fmt: skip
def test_verdicts(planned: str, above: str, verdict: str) -> None:
    ran: list[tuple[int, int, int]] = []

    def run(spec: CellSpec, cap: int) -> dict[str, Any]:
        ran.append((spec.batch, int(str(spec.data.options["n_train"])), cap))
        return {"status": planned if len(ran) == 1 else above}

    row = gpu_plan.confirm(Row(8 * G, 7 * G, "bptt", batch=70), subject(), peak, run)
    assert row.verdict == verdict
    assert row.predicted_bytes == peak(70)
    assert [batch for batch, _, _ in ran] == [70, row.above]
    assert [held for _, held, _ in ran] == [70, row.above]  # data enough for one batch
    assert {cap for _, _, cap in ran} == {7 * G}


def test_nothing_runs_where_nothing_fits() -> None:
    def run(spec: CellSpec, cap: int) -> dict[str, Any]:
        raise AssertionError

    row = gpu_plan.confirm(Row(8 * G, 7 * G, "bptt"), subject(), peak, run)
    assert (row.verdict, row.note) == ("-", "not even one sample fits")


def test_rows_are_written_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found before an abort stays; budgets beyond the time are noted."""
    args = gpu_plan.arguments([str(tmp_path / "plan.json"), "--budgets", "8GiB,24GiB", "--methods", "bptt"])
    seen: list[int] = []

    def rows(_: Any, budget: Any) -> Any:
        row = Row(budget.total_bytes, budget.total_bytes - 512 * M, "bptt", batch=budget.total_bytes // (100 * M))
        yield row, subject()

    def run(spec: CellSpec, cap: int) -> dict[str, Any]:
        seen.append(spec.batch)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return {"status": "ok" if len(seen) % 2 else "oom", "allocated_bytes": peak(spec.batch)}

    monkeypatch.setattr(gpu_plan, "planned", rows)
    monkeypatch.setattr(gpu_plan, "predictor", lambda spec: peak)
    with pytest.raises(KeyboardInterrupt):
        gpu_plan.sweep(args, run)
    (row,) = json.loads(args.out.read_text())["rows"]
    assert (row["budget_bytes"], row["verdict"]) == (8 * G, "confirmed")
    args.seconds, seen[:] = -1.0, []
    late = gpu_plan.sweep(args, run)
    assert [one["note"] for one in late] == ["no time was left"] * 2
    assert seen == []
    lines = gpu_plan.table([row, *late]).splitlines()
    assert len(lines) == 4
    assert lines[1].endswith("confirmed")
    assert "8.00 GiB" in lines[1]


@pytest.mark.slow
def test_the_plan_of_a_small_network_is_run(tmp_path: Path) -> None:
    """All of it for real, but for the cap, which a CPU has none of: the ledger's peak is compared instead."""
    words = [str(tmp_path / "plan.json"), "--device", "cpu", "--budgets", "832MiB", "--methods", "bptt", "--sample",
             "1,8,8", "--classes", "10", "--batch", "16", "--model", '{"name": "convnet", "channels": [4]}']  # fmt: skip
    args = gpu_plan.arguments(words)
    steps: list[CellSpec] = []

    def here(spec: CellSpec, cap: int) -> dict[str, Any]:
        steps.append(spec)
        return gpu_plan.step(spec, cap)

    (row,) = gpu_plan.sweep(args, here)
    assert row["verdict"] == "confirmed"
    assert row["seen"]["ledger_bytes"] == row["predicted_bytes"]
    assert [spec.batch for spec in steps] == [row["batch"], row["above"]]
    assert row["above_predicted_bytes"] > row["cap_bytes"] > row["predicted_bytes"]
