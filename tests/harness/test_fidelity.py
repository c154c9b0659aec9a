"""Fidelity: the comparison itself, on gradients that are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import fidelity
from harness.build import Bench, build_method
from harness.contracts import Loss, Method, StagedModel, StepOutput
from tests.harness.benches import make_bench, make_spec, supported


class Scaled(Method):
    """BPTT times a factor: a wrong gradient whose error is known."""

    name, summary, paper, gradient = "scaled", "-", "-", "biased"
    factor = 1.0

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        logits = model(x)
        value = loss(logits, y)
        loss.backward(value)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad *= self.factor
        update()
        return StepOutput(value.detach(), logits.detach().mean(0))


def compare(method: Method, bench: Bench) -> Any:
    from harness.build import copy_weights, make_loss

    model, plain = bench.prepared(method), bench.plain()
    copy_weights(model, plain)
    return fidelity.compare(method, model, plain, bench.batch, make_loss(bench.spec.loss), "initial")


@pytest.mark.parametrize("factor", [1.1, 0.5, -1.0, 0.0])
def test_a_scaled_gradient_has_the_error_of_its_factor(factor: float) -> None:
    method = Scaled()
    method.factor = factor
    found = compare(method, make_bench(make_spec(), torch.float64))
    assert found.relative_l2 == pytest.approx(abs(factor - 1), rel=1e-9)
    assert not found.exact
    if factor:
        assert found.cosine == pytest.approx(1.0 if factor > 0 else -1.0)
    else:
        assert found.cosine is None
        assert found.reasons["cosine"] == "a gradient is zero"
    for layer in found.layers:
        assert layer.relative_l2 == pytest.approx(abs(factor - 1), rel=1e-9)


def test_exact_promises_hold_in_both_precisions(method: str) -> None:
    spec = make_spec(method)
    supported(spec)
    if build_method(spec).gradient != "exact":
        pytest.skip("the method promises a biased gradient")
    double = fidelity.measure(make_bench(spec, torch.float64), "initial")
    assert double.relative_l2 <= 1e-10
    single = fidelity.measure(make_bench(spec), "initial")
    assert single.relative_l2 <= max(1e-5, single.rounding)


def test_forward_spikes_are_identical(method: str) -> None:
    spec = make_spec(method)
    supported(spec)
    found = fidelity.measure(make_bench(spec, torch.float64), "initial")
    assert found.flipped_spikes in (0.0, None)
    assert found.loss_difference == pytest.approx(0.0, abs=1e-10)


def test_updates_at_every_step_are_summed() -> None:
    class PerStep(Scaled):
        def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
            out = super().step(model, x, y, loss, lambda: None)
            whole = {p: p.grad for p in model.parameters()}
            for share in (0.25, 0.75):
                for parameter, gradient in whole.items():
                    parameter.grad = None if gradient is None else gradient * share
                update()
            return out

    assert compare(PerStep(), make_bench(make_spec(), torch.float64)).relative_l2 < 1e-14


def test_silent_layers_are_named() -> None:
    spec = make_spec(net={"v_threshold": 1e6, "norm": "none"})
    found = fidelity.measure(make_bench(spec), "initial")
    assert found.silent_layers == ["stages.0.2", "stages.1.2"]


def test_missing_gradient_counts_as_zero() -> None:
    class HeadOnly(Scaled):
        def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
            out = super().step(model, x, y, loss, lambda: None)
            for parameter in model.stages.parameters():
                parameter.grad = None
            update()
            return out

    found = compare(HeadOnly(), make_bench(make_spec(), torch.float64))
    by_name = {layer.name: layer for layer in found.layers}
    assert by_name["stages.0.0.weight"].relative_l2 == 1.0
    assert by_name["head.1.weight"].relative_l2 == 0.0


def test_weights_and_statistics_stay_as_they_were() -> None:
    bench = make_bench(make_spec())
    method = build_method(bench.spec)
    model, plain = bench.prepared(method), bench.plain()
    before = {k: v.clone() for k, v in plain.state_dict().items()}
    from harness.build import make_loss

    fidelity.compare(method, model, plain, bench.batch, make_loss(bench.spec.loss), "initial")
    assert all(torch.equal(v, before[k]) for k, v in plain.state_dict().items())
    assert all(p.grad is None for p in [*model.parameters(), *plain.parameters()])


def test_rounding_floor_is_small_but_not_zero() -> None:
    found = fidelity.measure(make_bench(make_spec(net={"norm": "none"})), "initial")
    assert found.rounding > 0
    assert found.tolerance == max(1e-5, found.rounding)
