import math
from pathlib import Path

import pandas as pd
import pytest

from harness.errors import UsageError
from harness.record import PhaseResult
from harness.spec import Ref
from harness.store import Store, Stored
from harness.store.frame import COLUMNS, frame
from tests.harness.samples import sample_memory, sample_record, sample_spec, sample_timing, sample_training


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "here")


def test_one_row_with_identity_spec_and_headlines(store):
    record = sample_record()
    path = store.write(record)
    table = store.frame()
    assert list(table.columns) == list(COLUMNS)
    row = table.iloc[0].to_dict()
    expected = {
        "store": "here", "suite": "quick", "cell": record.cell, "run_id": record.run_id, "path": str(path),
        "fingerprint": "00112233aabbccdd", "profile": "cpu",
        "method": "checkpoint", "method_label": "checkpoint(segments=2)", "baseline": "bptt", "gradient": "exact",
        "model_change": "same", "numerics": "same", "model": "vgg", "normalisation": "over_time", "parameters": 54_410,
        "data": "digits", "data_variant": "8x8 digits in place of MNIST", "data_synthetic": False, "T": 8, "batch": 32,
        "loss": "per_step", "criterion": "cross_entropy", "optimizer": "sgd", "lr": 0.05, "epochs": 3, "seed": 0,
        "precision": "fp32", "device": "cpu", "phases": "fidelity+memory+time+ops+train", "predicted": False,
        "status": "ok", "failed_phase": None, "status_time": "ok",
        "peak_live_bytes": record.memory.peak_live_bytes, "peak_activation_bytes": 5_242_880,
        "saved_bytes": 3_670_016, "split_activations_bytes": 4_194_304, "step_time_s": 0.0213, "ratio": 1.323,
        "paired": True, "verdict": "stable", "initial_relative_l2": 2.4e-7, "trained_exact": True, "tolerance": 1e-5,
        "synops": 48_234_496, "train_steps": 132, "final_test_accuracy": record.training.epochs[-1].test_accuracy,
        "cpu": "AMD EPYC 7B13", "gpu": None,
    }  # fmt: skip
    assert {key: row[key] for key in expected} == expected
    assert row["firing_rate"] == pytest.approx(0.17)
    assert math.isnan(row["cuda_allocated_bytes"])


def test_every_column_is_filled_by_some_record():
    """A column that nothing fills would be a name that went wrong."""
    cuda = dict.fromkeys(
        ("cuda_allocated_bytes", "cuda_reserved_bytes", "cuda_requested_bytes", "nvml_process_bytes"), 1
    )
    failed = {
        name: PhaseResult(status="oom" if name == "time" else "ok", reason="full") for name in sample_record().phases
    }
    record = sample_record(
        spec=sample_spec(device="cuda"),
        status="oom",
        phases=failed,
        memory=sample_memory(**cuda),
        timing=sample_timing(energy_per_step_j=0.5),
        provenance={"gpu": {"devices": [{"name": "H200"}, {"name": "H200"}]}, "cpu": {"model": "x"}},
    )
    row = frame([Stored(Path("s/quick/cell/run.json"), record)]).iloc[0]
    assert [name for name in COLUMNS if pd.isna(row[name])] == []
    assert row["gpu"] == "H200, H200"
    assert (row["status"], row["failed_phase"], row["reason"], row["status_time"]) == ("oom", "time", "full", "oom")


def test_failed_cells_are_rows_with_nulls(store):
    phases = {"build": PhaseResult(status="unsupported", reason="needs per_step")}
    nothing = dict.fromkeys(("memory", "timing", "ops", "training", "parameters", "normalisation"))
    empty = {"fidelity": [], "provenance": {}, "data": {}, "method": {}}
    store.write(sample_record(status="unsupported", phases=phases, **nothing, **empty))
    row = store.frame().iloc[0]
    assert (row["status"], row["failed_phase"], row["reason"]) == ("unsupported", "build", "needs per_step")
    assert math.isnan(row["peak_live_bytes"])
    assert row["verdict"] is None
    assert pd.isna(row["status_memory"])


def test_latest_run_of_each_cell_or_all(store):
    for hour, run in ((6, "a"), (8, "c"), (7, "b")):
        store.write(sample_record(run_id=run, created=f"2026-11-21T0{hour}:00:00+00:00"))
    store.write(sample_record(run_id="d", suite="other"))
    assert sorted(store.frame()["run_id"]) == ["c", "d"]
    assert sorted(store.frame(all_runs=True)["run_id"]) == ["a", "b", "c", "d"]
    assert list(store.frame("quick")["run_id"]) == ["c"]


def test_stores_are_told_apart(tmp_path):
    stores = [Store(tmp_path / name) for name in ("one", "two")]
    for index, store in enumerate(stores):
        store.write(sample_record(run_id=f"r{index}"))
    table = frame(item for store in stores for item in store.records())
    assert list(table["store"]) == ["one", "two"]


def test_seeds_share_a_group_and_labels_hold_options(store):
    for seed in range(3):
        store.write(sample_record(run_id=f"s{seed}", spec=sample_spec(seed=seed)))
    store.write(sample_record(run_id="x", spec=sample_spec(method=Ref(name="checkpoint", options={"segments": 4}))))
    table = store.frame()
    assert sorted(table.groupby("group").size()) == [1, 3]
    assert set(table["method_label"]) == {"checkpoint(segments=2)", "checkpoint(segments=4)"}


def test_an_empty_store_gives_an_empty_frame_with_all_columns(tmp_path):
    table = Store(tmp_path).frame()
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == 0
    assert table["peak_live_bytes"].dtype == float


def test_a_diverged_loss_is_kept(store):
    training = sample_training(epochs=[], final_test_accuracy=None, reasons={"final_test_accuracy": "diverged"})
    store.write(sample_record(training=training))
    assert math.isnan(store.frame().iloc[0]["final_test_accuracy"])


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_export_keeps_whole_numbers_whole(store, tmp_path, suffix):
    record = sample_record()
    store.write(record)
    store.write(sample_record(run_id="b", spec=sample_spec(T=2), memory=None))
    file = store.export(tmp_path / "new" / f"table{suffix}")
    table = pd.read_parquet(file) if suffix == ".parquet" else pd.read_csv(file, dtype={"peak_live_bytes": "Int64"})
    assert list(table.columns) == list(COLUMNS)
    assert sorted(table["peak_live_bytes"].dropna()) == [record.memory.peak_live_bytes]
    assert list(table.sort_values("T")["T"]) == [2, 8]
    if suffix == ".csv":
        assert f",{record.memory.peak_live_bytes}," in file.read_text()


def test_export_refuses_other_formats_and_places(store, tmp_path):
    store.write(sample_record())
    with pytest.raises(UsageError, match=r"table\.xlsx: unknown format '\.xlsx'\. Allowed: \.parquet, \.csv"):
        store.export(tmp_path / "table.xlsx")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        store.export(tmp_path / "file" / "table.csv")
