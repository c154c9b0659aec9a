"""A task with a delay: BPTT learns it, a rule without gradient through the membrane does not."""

from __future__ import annotations

import pytest

import snnbench

MODEL = {
    "name": "mlp", "hidden": [128], "norm": "weight_standardised",
    "tau": 50.0, "decay_input": False, "v_reset": "soft", "alpha": 4.0,
}  # fmt: skip
RECIPE = {"optimizer": "adam", "lr": 0.01, "schedule": "cosine", "epochs": 15}


def accuracy(method: str, seed: int) -> float:
    spec = snnbench.cell(method, MODEL, "delayed-recall", T=50, batch=100, seed=seed, recipe=RECIPE, phases=("train",))
    final = snnbench.train(spec).final_test_accuracy
    assert final is not None
    return final


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sltt_falls_visibly_behind_bptt(seed: int) -> None:
    exact, biased = accuracy("bptt", seed), accuracy("sltt", seed)
    assert exact >= 0.9
    assert exact - biased >= 0.1
