"""What the quick suite promises; that its cells run is for the integration tests."""

import tomllib
from collections import Counter
from importlib import metadata, resources

import pytest

from harness import registry, suite

METHODS = ["bptt", "checkpoint", "checkpoint-compress", "sltt"]
UNTRAINED = {"compile-budget", "streamed(budget=min)"}
"""On nets this small their steps take so long that trainings would take minutes."""
UNCOUNTED = {"compile-budget"}
"""The ledger cannot count it."""
APART = {"reversible-block"}
"""Needs reversible blocks, and so a model of its own."""


@pytest.fixture(scope="module")
def table():
    return tomllib.loads((resources.files("suites") / "quick.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def cells():
    return suite.load("quick").expand("cpu")


def names(value):
    entries = value if isinstance(value, list) else [value]
    return {entry if isinstance(entry, str) else entry["name"] for entry in entries}


def test_it_names_registered_plugins_only(table):
    for axis, group in (("method", "methods"), ("model", "models"), ("data", "datasets")):
        registered = {point.name for point in metadata.entry_points(group=f"snnbench.{group}")}
        used = set().union(*(names(grid[axis]) for grid in table["grid"]))
        assert used <= registered


def test_every_plugin_of_this_package_can_be_imported():
    for kind in ("models", "datasets"):
        for entry in registry.entries(kind).values():
            assert entry.unavailable is None, entry


def test_profiles(table):
    assert set(table["profiles"]) == {"cpu", "gpu"}
    cpu, gpu = table["profiles"]["cpu"], table["profiles"]["gpu"]
    assert (cpu["device"], cpu["threads"], gpu["device"]) == ("cpu", 1, "cuda")


def test_more_than_forty_cells_are_measured(cells):
    kinds = Counter("predicted" if c.predicted else "train" if "train" in c.phases else "cost" for c in cells)
    assert kinds["cost"] + kinds["train"] > 40
    assert kinds["predicted"] >= 20


def test_all_methods_share_a_model_that_suits_them_and_one_objective(cells):
    for cell in cells:
        if cell.method.name == "sltt" and cell.model.name != "mlp":
            assert cell.model.options["norm"] == "per_step"
        assert cell.loss.kind == "per_step"
    for data, timed in (("digits", (4, 8, 16)), ("digit-events", (4, 16))):
        of_data = [c for c in cells if c.data.name == data]
        measured = {(c.method.name, c.T) for c in of_data if {"fidelity", "memory"} <= set(c.phases)}
        assert measured >= {(method, steps) for method in METHODS for steps in (4, 8, 16)}
        found = {(c.method.name, c.T) for c in of_data if "time" in c.phases}
        assert found >= {(method, steps) for method in METHODS for steps in timed}


def test_every_method_of_this_package_is_measured_and_its_memory_followed_over_time(cells):
    ours = {name for name, entry in registry.entries("methods").items() if entry.target.startswith("methods.")}
    measured = {c.method.name for c in cells if {"fidelity", "memory", "time"} <= set(c.phases)}
    assert measured >= ours
    steps = {name: {c.T for c in cells if c.method.name == name and "memory" in c.phases} for name in measured}
    assert all(len(found) >= 2 for name, found in steps.items() if name not in UNCOUNTED), steps


def test_exact_methods_are_measured_under_both_normalisations(cells):
    for method in METHODS[:3]:
        norms = {c.model.options["norm"] for c in cells if c.method.name == method and "time" in c.phases}
        assert norms == {"over_time", "per_step"}


def test_every_method_trains_with_three_seeds_on_the_digits(cells):
    """Each configuration of the grid that measures them: the same methods, with the same options."""
    trained = {(c.method.label, c.seed) for c in cells if "train" in c.phases and c.data.name == "digits"}
    costed = [c.method for c in cells if "time" in c.phases and c.data.name == "digits" and c.T == 8]
    labels = {method.label for method in costed if method.name not in APART}
    expected = {label for label in labels if label.split("(")[0] not in UNTRAINED and label not in UNTRAINED}
    assert trained == {(label, seed) for label in expected for seed in (0, 1, 2)}


def test_some_train_with_three_seeds_on_the_events(cells):
    trained = {(c.method.name, c.seed) for c in cells if "train" in c.phases and c.data.name == "digit-events"}
    assert trained == {(method, seed) for method in ("bptt", "sltt") for seed in (0, 1, 2)}
    assert {c.T for c in cells if "train" in c.phases and c.data.name != "delayed-recall"} == {4}


def test_a_task_with_a_delay_is_trained_by_exact_and_by_biased_rules(cells):
    recall = [c for c in cells if c.data.name == "delayed-recall"]
    assert {c.T for c in recall} == {50}
    assert all("train" in c.phases for c in recall)
    gradients = {c.method.name: registry.plugin("methods", c.method.name).gradient for c in recall}
    assert gradients["bptt"] == "exact"
    assert sum(gradient == "biased" for gradient in gradients.values()) >= 3
    assert Counter(c.method.name for c in recall) == dict.fromkeys(gradients, 3)


def test_a_training_cell_has_the_model_batch_and_recipe_of_its_cost_cells(cells):
    shared = {c.group("phases", "seed", "T") for c in cells if "time" in c.phases}
    trained = [c for c in cells if "train" in c.phases and c.data.name != "delayed-recall"]
    assert all(c.group("phases", "seed", "T") in shared for c in trained)


def test_predictions_have_measured_counterparts(cells):
    measured = {c.group("phases", "predicted") for c in cells if not c.predicted}
    predicted = [c for c in cells if c.predicted and c.T in (4, 8, 16) and c.data.name != "shape"]
    assert predicted
    assert all(c.group("phases", "predicted") in measured for c in predicted)


def test_saved_bytes_are_measured_over_a_wide_range_of_steps(cells):
    for method in ("bptt", "sltt"):
        steps = {c.T for c in cells if c.method.name == method and c.phases == ("memory",) and not c.predicted}
        assert steps == {2, 4, 8, 16, 32}
