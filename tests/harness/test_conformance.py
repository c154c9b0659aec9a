"""The conformance kit: good methods pass, and methods that break one promise are caught by the check for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness import conformance, registry
from harness.contracts import Loss, Method, StagedModel, StepOutput
from tests.harness.benches import QUICK

Step = Callable[[], None]


class Honest(Method):
    """BPTT; the wrong methods below break one thing each."""

    name, summary, paper, gradient = "honest", "-", "-", "exact"

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Step) -> StepOutput:
        logits = model(x)
        value = loss(logits, y)
        loss.backward(value)
        update()
        return StepOutput(value.detach(), logits.detach().mean(0))


class BiasedButClaimsExact(Honest):
    """Gradient of the first half of the sequence only."""

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Step) -> StepOutput:
        logits = model(x)
        value = loss(torch.cat([logits[: len(x) // 2], logits[len(x) // 2 :].detach()]), y)
        loss.backward(value)
        update()
        return StepOutput(value.detach(), logits.detach().mean(0))


class LeaksState(Honest):
    """Adds a little of the last batch's gradient."""

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.last: dict[str, Tensor] = {}

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Step) -> StepOutput:
        def leaking() -> None:
            now = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            for name, parameter in model.named_parameters():
                if name in self.last and parameter.grad is not None:
                    parameter.grad += 1e-3 * self.last[name]
            self.last = now
            update()

        return super().step(model, x, y, loss, leaking)


class UpdatesStatisticsTwice(Honest):
    """What checkpointing without care does: the recompute updates the running statistics again."""

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Step) -> StepOutput:
        out = super().step(model, x, y, loss, update)
        from harness.contracts import reset_states

        reset_states(model)
        with torch.no_grad():
            model(x)
        return out


class LossyCompressor(Honest):
    """Keeps the first stage's output in half precision."""

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        def lose(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
            return out + (out.detach().half().to(out.dtype) * 1.001 - out.detach())

        model.stages[0].register_forward_hook(lose)
        return model


class RenamesKeys(Honest):
    """Wraps a stage and forgets to unwrap it."""

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        model.stages[0] = nn.Sequential(model.stages[0])
        return model


class KeepsGrowing(Honest):
    """Keeps every batch."""

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.kept: list[Tensor] = []

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Step) -> StepOutput:
        self.kept.append(x.clone())
        return super().step(model, x, y, loss, update)


class ClaimsFlat(Honest):
    """BPTT that claims to be flat in T."""

    flat_in_time = True


class WantsContiguous(Honest):
    """Reads the memory as if it were contiguous."""

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Step) -> StepOutput:
        as_is = torch.as_strided(x, x.shape, torch.empty(x.shape).stride())
        return super().step(model, as_is, y, loss, update)


class OtherDropout(Honest):
    """Draws random numbers before the forward: another dropout mask."""

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Step) -> StepOutput:
        torch.rand(1)
        return super().step(model, x, y, loss, update)


class Crashes(Honest):
    """Raises under half precision."""

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Step) -> StepOutput:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("expected float32")
        return super().step(model, x, y, loss, update)


WRONG = {
    BiasedButClaimsExact: "exact gradient (",
    LeaksState: "same batch, same gradient",
    UpdatesStatisticsTwice: "running statistics",
    LossyCompressor: "exact gradient (",
    RenamesKeys: "RuntimeError",
    KeepsGrowing: "nothing is left over",
    ClaimsFlat: "saved bytes over T: flat",
    WantsContiguous: "non-contiguous",
    OtherDropout: "exact gradient (dropout",
    Crashes: "bf16",
}


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Method]], str]:
    """Registers a class as the method ``honest`` for one test."""
    entries = dict(registry.entries("methods"))

    def put(plugin: type[Method]) -> str:
        entries["honest"] = registry.Entry("honest", "methods", "tests", "tests", plugin, None)
        return "honest"

    real = registry.entries
    monkeypatch.setattr(registry, "entries", lambda kind: entries if kind == "methods" else real(kind))
    return put


ONE_NET = {"dropout": conformance.NETS["dropout"]}


def failures(name: str) -> list[str]:
    return [f"{c.name}: {c.detail}" for c in conformance.check(name, nets=ONE_NET) if c.passed is False]


def test_an_honest_method_passes(register: Callable[[type[Method]], str]) -> None:
    assert failures(register(Honest)) == []


@pytest.mark.parametrize("wrong", WRONG, ids=lambda c: c.__name__)
def test_a_wrong_method_is_caught(register: Callable[[type[Method]], str], wrong: type[Method]) -> None:
    found = failures(register(wrong))
    assert any(WRONG[wrong] in line for line in found), found


def test_every_registered_method_conforms(method: str) -> None:
    results = conformance.check(method, QUICK.get(method))
    assert [f"{c.name}: {c.detail}" for c in results if c.passed is False] == []
    assert any(c.passed for c in results)


def test_a_method_that_refuses_everything_is_a_finding(register: Callable[[type[Method]], str]) -> None:
    class Refuses(Honest):
        def supports(self, model: StagedModel, loss: Loss) -> str | None:
            return "never"

    results = conformance.check(register(Refuses))
    assert [c.passed for c in results] == [None] * len(conformance.NETS) + [False]
    assert all(c.skipped_reason == "never" for c in results[:-1])
