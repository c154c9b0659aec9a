"""What exact methods learn: on the digits BPTT's accuracy, by paired differences of seeds."""

from __future__ import annotations

from functools import cache

import pytest

import snnbench
from harness import registry
from harness.stats import EQUIVALENCE_MARGIN, equivalence, paired_difference
from tests.harness.benches import QUICK
from tests.methods.test_assertions import NETS, registered

SEEDS = (0, 1, 2)
MODEL = {"name": "convnet", "norm": "per_step", "channels": [8, 16]}
RECIPE = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "schedule": "cosine", "epochs": 3}


@cache
def accuracies(method: str) -> dict[int, float]:
    """Final test accuracy by seed: the digits of the suite ``quick``, a smaller net and fewer steps."""
    options = {"name": method, **QUICK.get(method, {})}
    cells = {
        seed: snnbench.cell(options, MODEL, "digits", T=2, batch=64, seed=seed, recipe=RECIPE, phases=("train",))
        for seed in SEEDS
    }
    found = {seed: snnbench.train(cell).final_test_accuracy for seed, cell in cells.items()}
    assert all(value is not None and value > 0.8 for value in found.values()), found
    return {seed: value for seed, value in found.items() if value is not None}


def same_network() -> list[str]:
    """Exact methods that train the network as it is, and take the one used here."""
    names = [parameter.values[0] for parameter in registered("exact")]
    return [n for n in names if n != "bptt" and n not in NETS and registry.plugin("methods", n).model == "same"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", same_network())
def test_exact_methods_learn_what_bptt_learns(method):
    difference = paired_difference(accuracies(method), accuracies("bptt"))
    assert difference is not None
    assert difference.n == len(SEEDS)
    # With three seeds an interval may leave the margin where single images are classified otherwise.
    assert abs(difference.mean) <= EQUIVALENCE_MARGIN
    assert equivalence(difference) != "different"
