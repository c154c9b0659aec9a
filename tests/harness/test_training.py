"""Training: real, repeatable, and honest about the final epoch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from harness import registry, training
from harness.build import Bench, build_model, copy_weights, open_bench
from harness.spec import CellSpec, Recipe
from tests.harness.benches import make_spec

DIGITS = {"n_train": 320, "n_test": 100}


def digits(
    method: str = "bptt", seed: int = 0, norm: str = "per_step", **recipe: float | str | int
) -> tuple[Bench, CellSpec]:
    fields = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "epochs": 3, "schedule": "cosine"} | recipe
    spec = make_spec(
        method,
        data=registry.complete("datasets", "digits", DIGITS, "test"),
        batch=32,
        seed=seed,
        recipe=Recipe.model_validate(fields),
        net={"channels": [16, 32], "norm": norm},
    )
    return open_bench(spec)[0], spec


def test_same_cell_twice_gives_identical_curves_and_weights(method: str) -> None:
    bench, _ = digits(method, epochs=2)
    from harness.contracts import Unsupported

    try:
        (one, _), (two, _) = training.measure(bench), training.measure(bench)
    except Unsupported as reason:
        pytest.skip(f"unsupported: {reason}")
    assert one.weights_sha256 == two.weights_sha256
    for a, b in zip(one.epochs, two.epochs, strict=True):
        assert a.model_dump(exclude={"seconds"}) == b.model_dump(exclude={"seconds"})


def test_seeds_differ_and_learning_happens() -> None:
    results = [training.measure(digits(seed=seed, epochs=4)[0])[0] for seed in (0, 1)]
    assert results[0].weights_sha256 != results[1].weights_sha256
    for found in results:
        assert found.final_test_accuracy == found.epochs[-1].test_accuracy
        assert found.final_test_accuracy is not None
        assert found.final_test_accuracy > 0.5, "ten classes: chance is 0.1"
        assert found.epochs[-1].train_loss < found.epochs[0].train_loss
        assert found.steps == 4 * (320 // 32)


def test_exact_methods_learn_the_same_curve() -> None:
    curves = {}
    for name in ("bptt", "checkpoint", "checkpoint-compress"):
        found, _ = training.measure(digits(name, epochs=1)[0])
        curves[name] = found.epochs[0].train_loss
    assert curves["checkpoint"] == pytest.approx(curves["bptt"], rel=1e-4)
    assert curves["checkpoint-compress"] == pytest.approx(curves["bptt"], rel=1e-4)


def test_divergence_keeps_the_epochs_before() -> None:
    bench, _ = digits(norm="none", lr=1e38, epochs=3, momentum=0.0)
    with pytest.raises(training.DivergedError, match="not finite") as caught:
        training.measure(bench)
    block = caught.value.block
    assert block is not None
    assert block.final_test_accuracy is None
    assert block.reasons["final_test_accuracy"] == "training diverged"
    assert all(math.isfinite(e.train_loss) for e in block.epochs)


def test_batch_larger_than_the_split_is_named() -> None:
    bench, spec = digits()
    big = Bench(spec.model_copy(update={"batch": 4096}), bench.info, bench.batch, bench.splits)
    with pytest.raises(ValueError, match=r"batch 4096 is larger than the training split \(320 samples\)"):
        training.measure(big)


def test_cosine_schedule_ends_at_zero() -> None:
    bench, spec = digits(epochs=1)
    trainer = bench.trainer()
    schedule = training._schedule(trainer, 10)
    for _ in range(10):
        trainer.optimizer.step()
        schedule.step()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
    assert spec.recipe.schedule == "cosine"


def test_evaluation_uses_running_statistics_and_no_dropout() -> None:
    bench, spec = digits()
    plain = build_model(spec, bench.info)
    first, second = training.evaluate(bench, plain), training.evaluate(bench, plain)
    assert first == second
    assert not plain.training


def test_copy_weights_refuses_missing_keys() -> None:
    with pytest.raises(RuntimeError, match="Missing key"):
        copy_weights(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))


def test_weights_hash_sees_every_bit() -> None:
    model = nn.BatchNorm1d(3)
    before = training.weights_sha256(model)
    model.running_mean[0] += torch.finfo(torch.float32).eps
    assert training.weights_sha256(model) != before
    model.running_mean[0] = 0.0
    assert training.weights_sha256(model) == before
    model.num_batches_tracked += 1
    assert training.weights_sha256(model) != before
