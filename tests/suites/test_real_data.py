"""The published data sets themselves, where ``$SNNBENCH_TEST_DATA`` names a folder that has them."""

import os
from pathlib import Path

import pytest
import torch

from harness import api, registry
from harness.contracts import Unavailable
from harness.spec import Recipe

FOLDER = os.environ.get("SNNBENCH_TEST_DATA")

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(FOLDER is None, reason="$SNNBENCH_TEST_DATA does not name a folder with data sets"),
]

STEPS = {"seq-cifar10": 32, "psmnist": 784, "braille": 76}
FROM_FILES = [name for name, entry in registry.entries("datasets").items()
              if entry.plugin is not None and "allow_variant" in entry.plugin.options.model_fields]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The data, linked, so that caches go into a folder of the test's own."""
    for path in Path(str(FOLDER)).iterdir():
        if path.name not in ("cache", "verified"):
            (tmp_path / path.name).symlink_to(path.absolute())
    monkeypatch.setenv("SNNBENCH_DATA", str(tmp_path))


def options(name, **values):
    allowed = registry.plugin("datasets", name).options.model_fields
    return {"name": name, "allow_variant": True} | {k: v for k, v in values.items() if k in allowed}


@pytest.mark.parametrize("name", FROM_FILES)
def test_items_are_what_info_says(name):
    source = registry.create("datasets", api._ref("datasets", options(name, n_train=200, n_test=100)))
    steps = STEPS.get(name, 4)
    try:
        source.prepare(steps)
    except Unavailable as error:
        pytest.skip(str(error))
    splits, info = source.load(steps), source.info()
    for part in (splits.train, splits.test):
        x, y = part[len(part) - 1]
        assert x.shape == (steps, *info.sample)
        assert x.dtype == torch.float32
        assert 0 <= y < info.classes
    assert source.load(steps).sha256 == splits.sha256


@pytest.mark.parametrize(("name", "chance", "batch"), [("cifar10", 0.1, 50), ("nmnist", 0.1, 50)])
def test_training_gets_above_chance_and_rises(name, chance, batch):
    data = options(name, n_train=1000, n_test=100)
    model = {"name": "convnet", "channels": [16, 32], "norm": "per_step"}
    recipe = Recipe(optimizer="adam", lr=2e-3, epochs=2)
    try:
        found = api.train(api.cell("bptt", model, data, T=4, batch=batch, recipe=recipe))
    except ValueError as error:
        pytest.skip(str(error))
    accuracy = [epoch.train_accuracy for epoch in found.epochs]
    assert accuracy[1] > accuracy[0] > chance
    assert found.final_test_accuracy > 1.5 * chance
