"""Cells on data that are missing, damaged or a variant: what their records say."""

import pickle

import pytest
import torch

from harness import quiet, registry, worker
from harness.build import data_source, synthetic_batch
from harness.executors.job import Job
from harness.spec import CellSpec, LossSpec, Recipe
from harness.store import Store, new_run_id
from tests.suites import datafiles


def cell(phases, **options):
    """A small cell on CIFAR-10."""
    return CellSpec(
        method=registry.complete("methods", "bptt", {}, where="test"),
        baseline="bptt",
        model=registry.complete("models", "convnet", {"channels": [4], "norm": "per_step"}, where="test"),
        data=registry.complete("datasets", "cifar10", options, where="test"),
        T=2,
        batch=5,
        loss=LossSpec(kind="per_step"),
        recipe=Recipe(epochs=1),
        profile="test",
        phases=phases,
    )


@pytest.fixture
def run(tmp_path, monkeypatch, empty):
    """Runs a small cell on CIFAR-10 and gives its record."""
    monkeypatch.setattr(quiet.tempfile, "gettempdir", lambda: str(tmp_path))

    def measure(phases=("fidelity", "memory", "time", "train"), **options):
        spec = cell(phases, **options)
        store = tmp_path / "store"
        worker.run_cell(Job(spec, "s", "0" * 64, str(store), new_run_id(), 60.0, 1, None, False))
        (record,) = [item.record for item in Store(store).records() if item.record.cell == spec.hash]
        return record

    return measure


def test_without_the_data_all_but_accuracy_is_measured_on_declared_noise(run, empty):
    record = run()
    phases = {name: phase.status for name, phase in record.phases.items()}
    assert phases == {"build": "ok", "fidelity": "ok", "memory": "ok", "time": "ok", "train": "unavailable"}
    assert record.status == "unavailable"
    assert record.training is None
    assert record.memory.peak_live_bytes > 0
    assert record.fidelity[0].exact
    assert record.data["synthetic"] is True
    assert record.data["input"].startswith("uniform noise")
    assert record.data["sha256"] is None
    reason = record.phases["train"].reason
    assert f"{empty / 'cifar-10-batches-py'}" in reason
    assert "snnbench data fetch cifar10" in reason
    assert "\n" not in reason


def test_damaged_data_are_not_used_and_the_record_says_why(run, empty):
    datafiles.cifar10(empty)
    record = run(phases=("memory", "train"))
    assert record.phases["memory"].status == "ok"
    assert record.phases["train"].status == "unavailable"
    assert "data_batch_1 is not the published file: its md5 is" in record.phases["train"].reason
    assert record.data["synthetic"] is True


def test_a_variant_is_trained_on_and_declared_with_all_its_reasons(run, empty):
    datafiles.cifar10(empty)
    record = run(phases=("memory", "train"), allow_variant=True, n_train=20)
    assert record.phases["train"].status == "ok"
    assert record.training.train_samples == 20
    first, second = record.data["variant"].split("; ")
    assert first == "20 samples of train (seed 0)"
    assert second.startswith("checksums differ from the published ones: data_batch_1")
    assert record.data["synthetic"] is False
    assert record.provenance["data_sha256"] == record.data["sha256"]
    assert record.data["checksums"]["data_batch_1"].startswith("md5:")


def test_a_static_set_is_replaced_by_one_frame_at_all_steps():
    for encoding, same in (("direct", True), ("rate", False)):
        spec = cell(("memory",), encoding=encoding)
        x, y = synthetic_batch(data_source(spec).info(), spec)
        assert x.shape == (2, 5, 3, 32, 32)
        assert x.is_contiguous()
        assert torch.equal(x[0], x[1]) is same
        assert not torch.equal(x[0, 0], x[0, 1])
        assert y.shape == (5,)


def test_a_batch_larger_than_the_training_split_is_told(run, empty):
    datafiles.cifar10(empty, per_batch=0, test=5)
    leave_four(empty)
    record = run(phases=("memory", "train"), allow_variant=True)
    assert record.status == "error"
    assert "batch 5 is larger than the training split" in record.phases["build"].reason


def leave_four(folder):
    """Four training images in all."""
    path = folder / "cifar-10-batches-py" / "data_batch_1"
    content = pickle.loads(path.read_bytes())
    test = pickle.loads((folder / "cifar-10-batches-py" / "test_batch").read_bytes())
    content |= {"data": test["data"][:4], "labels": test["labels"][:4]}
    path.write_bytes(pickle.dumps(content))
