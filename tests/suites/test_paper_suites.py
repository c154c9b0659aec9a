"""The papers' suites: they expand in every profile, predict every memory claim at full size, and declare what is reduced."""

import re
from pathlib import Path

import pytest
import torch

from harness import suite
from harness.predict import predict
from harness.store import Store
from harness.store.series import thin
from scripts.compact_store import POINTS, by_stage

NAMES = ("cifar", "dvs", "imagenet", "scaling")
REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference" / "predicted"
SAMPLE = {
    "dvs": ("bptt", 10, 8),
    "cifar": ("bptt", 32, 128),
    "scaling": ("bptt-fused", 4, 32),
    "imagenet": ("bptt", 4, 32),
}
"""Method, T and batch of the cells that are predicted again, by suite: quick ones."""
SAME_BYTES = ("2.11.0",)
"""Other versions of torch that were seen to give the store's predictions."""


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_has_cells(name):
    found = suite.load(name)
    assert list(found.profiles) == ["cpu", "gpu", "paper", "predict"]
    for profile, sizes in found.profiles.items():
        cells = found.expand(profile)
        assert cells, profile
        assert {cell.predicted for cell in cells} == {profile == "predict"}
        assert {cell.device for cell in cells} == {sizes.device}


@pytest.mark.parametrize("name", NAMES)
def test_the_cpu_profile_says_what_it_reduces(name):
    assert len(suite.load(name).profile("cpu").substitute) > 40


@pytest.mark.parametrize("name", NAMES)
def test_predictions_name_a_shape_and_need_no_data(name):
    assert {cell.data.name for cell in suite.load(name).expand("predict")} == {"shape"}


def test_imagenet_predicts_the_three_networks_under_every_level():
    cells = suite.load("imagenet").expand("predict")
    for model in ("sew-resnet", "spikformer", "qkformer"):
        of = [cell for cell in cells if cell.model.name == model]
        levels = {cell.method.options["level"] for cell in of if cell.method.name == "checkpoint-compress"}
        assert levels == {"O1", "O2", "O3", "O4"}
        assert {"bptt", "bptt-fused", "checkpoint", "sltt", "stdl"} <= {cell.method.name for cell in of}
        assert {(cell.T, cell.batch) for cell in of} == {(4, 32)}


def test_every_prediction_takes_part_in_a_baseline():
    """A ratio needs its baseline in the same context."""
    for name in NAMES:
        cells = suite.load(name).expand("predict")
        baselines = {cell.group("method", "baseline") for cell in cells if cell.method.name == cell.baseline}
        lone = [cell.label() for cell in cells if cell.group("method", "baseline") not in baselines]
        assert not lone, lone


# The committed predictions ------------------------------------------------------------------------------------------------

stored = pytest.mark.skipif(not REFERENCE.is_dir(), reason="this checkout has no results/reference/predicted")


@stored
def test_the_reference_store_is_whole_small_and_says_nothing_of_the_machine():
    store = Store(REFERENCE)
    found = store.records()
    assert not store.damaged
    assert found
    size = sum(path.stat().st_size for path, _ in found)
    assert size < 3 * 10**6
    for path, record in found:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/(home|root|tmp|work|Users)/", text), path
        assert record.provenance["system"]["host"] is None
        assert record.spec.predicted
        assert record.status in ("ok", "unsupported")


@stored
@pytest.mark.parametrize("name", sorted(SAMPLE))
def test_a_sample_is_predicted_again_to_the_byte(name):
    method, steps, batch = SAMPLE[name]
    wanted = [
        record
        for _, record in Store(REFERENCE).records(name)
        if (record.spec.method.name, record.spec.T, record.spec.batch) == (method, steps, batch)
    ]
    if not wanted:
        pytest.skip(f"the reference store does not hold the suite {name}")
    record = min(wanted, key=lambda found: found.memory.events)
    if torch.__version__.split("+")[0] not in (record.provenance["torch"]["version"].split("+")[0], *SAME_BYTES):
        pytest.skip(f"predicted with torch {record.provenance['torch']['version']}, this is {torch.__version__}")
    memory, report, _ = predict(record.spec)
    again, before = memory.model_dump(mode="json"), record.memory.model_dump(mode="json")
    for field in ("peak_live_bytes", "split", "peak_activation_bytes", "saved_bytes", "static_bytes", "events"):
        assert again[field] == before[field], field
    assert by_stage(again["by_module"]) == before["by_module"]
    assert thin(again["timeline"], POINTS) == before["timeline"]
    assert report is not None
