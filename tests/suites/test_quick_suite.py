"""What the quick suite promises; that its cells run is for the integration tests."""

import tomllib
from collections import Counter
from importlib import metadata, resources

import pytest

from harness import registry, suite

METHODS = ["bptt", "checkpoint", "checkpoint-compress", "sltt"]


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
        if cell.method.name == "sltt":
            assert cell.model.options["norm"] == "per_step"
        assert cell.loss.kind == "per_step"
    for data in ("digits", "digit-events"):
        found = {(c.method.name, c.T) for c in cells if c.data.name == data and "time" in c.phases}
        assert found >= {(method, steps) for method in METHODS for steps in (4, 8, 16)}


def test_exact_methods_are_measured_under_both_normalisations(cells):
    for method in METHODS[:3]:
        norms = {c.model.options["norm"] for c in cells if c.method.name == method and "time" in c.phases}
        assert norms == {"over_time", "per_step"}


def test_every_method_trains_with_three_seeds_on_both_data_sets(cells):
    trained = Counter((c.method.name, c.data.name) for c in cells if "train" in c.phases)
    assert set(trained.values()) == {3}
    assert trained.keys() >= {(m, d) for m in METHODS for d in ("digits", "digit-events")}
    assert {c.T for c in cells if "train" in c.phases} == {4}


def test_a_training_cell_has_the_model_batch_and_recipe_of_its_cost_cells(cells):
    shared = {c.group("phases", "seed", "T") for c in cells if "time" in c.phases}
    assert all(c.group("phases", "seed", "T") in shared for c in cells if "train" in c.phases)


def test_predictions_have_measured_counterparts(cells):
    measured = {c.group("phases", "predicted") for c in cells if not c.predicted}
    predicted = [c for c in cells if c.predicted and c.T in (4, 8, 16) and c.data.name != "shape"]
    assert predicted
    assert all(c.group("phases", "predicted") in measured for c in predicted)


def test_saved_bytes_are_measured_over_a_wide_range_of_steps(cells):
    for method in ("bptt", "sltt"):
        steps = {c.T for c in cells if c.method.name == method and c.phases == ("memory",) and not c.predicted}
        assert steps == {2, 4, 8, 16, 32}
