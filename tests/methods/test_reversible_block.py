"""Reversible blocks: the gradient, statistics and random numbers of BPTT, memory that does not grow with depth."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import layer
from torch import Tensor, nn

from harness import conformance, registry
from harness.build import Bench
from harness.contracts import StagedModel
from harness.memory import track
from harness.predict import faking
from harness.spec import CellSpec
from methods.bptt import BPTT
from methods.reversible_block import ReversibleBlock
from suites.models.revnet import Coupling, RevResNet, RevResNetOptions
from tests.harness.benches import make_spec, predicted, supported
from tests.methods.nets import (
    batch,
    build,
    conv,
    difference,
    lif,
    loss,
    no_norm,
    over_time,
    per_step,
    plif,
    prepared,
    run,
)

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def residual(channels: int, node: Any, norm: Any, tail: Any) -> nn.Sequential:
    """F or G: neuron - conv - norm, and what a test adds."""
    return nn.Sequential(node(), *list(conv(channels, channels, node, norm))[:2], tail())


def coupled(node: Any = None, norm: Any = over_time, tail: Any = nn.Identity, blocks: int = 2) -> StagedModel:
    """The tests' net with reversible stages in its middle; spikes enter them, and no membrane equals the threshold."""
    node = node or lif(v_threshold=0.45)
    model = build(node, norm)
    torch.manual_seed(3)
    middle = [Coupling(residual(2, node, norm, tail), residual(2, node, norm, tail)) for _ in range(blocks)]
    stages = [model.stages[0], *middle, *model.stages[2:]]
    return StagedModel(stages, model.head, model.normalisation)


def published(**options: Any) -> StagedModel:
    torch.manual_seed(0)
    settings = {"blocks": (2, 1), "widths": (4, 6)} | options
    return RevResNet(RevResNetOptions(**settings)).build((2, 8, 8), 3)


NETS: dict[str, Any] = {
    "rev-resnet": published,
    "rev-resnet-soft-if": lambda: published(neuron="if", v_reset="soft"),
    "lif": coupled,
    "plif": lambda: coupled(plif(v_threshold=0.45)),
    "per-step-norm": lambda: coupled(None, per_step),
    "no-norm": lambda: coupled(None, no_norm),
    "dropout": lambda: coupled(None, over_time, lambda: layer.Dropout(0.4, step_mode="m")),
    "torch-dropout": lambda: coupled(None, over_time, lambda: nn.Dropout(0.4)),
    "four-blocks": lambda: coupled(blocks=4),
}


def steps_of(make: Any, dtype: torch.dtype, kind: str = "per_step") -> tuple[Any, Any]:
    """The same training step by BPTT and by the method."""
    x, y = batch(dtype=dtype)
    found = []
    for method in (BPTT(), ReversibleBlock()):
        model = prepared(method, make().to(dtype), x)
        found.append(run(method, model, x, y, loss(kind)))
    return found[0], found[1]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_step_is_that_of_bptt(net, dtype):
    expected, got = steps_of(NETS[net], dtype)
    assert torch.equal(got.out.loss, expected.out.loss)
    assert torch.equal(got.out.logits, expected.out.logits)
    assert got.updates == 1
    # Statistics were updated exactly once: to the same bits.
    assert got.buffers.keys() == expected.buffers.keys()
    assert all(torch.equal(got.buffers[name], value) for name, value in expected.buffers.items())
    assert difference(got.gradients, expected.gradients) <= TOLERANCE[dtype]


def test_spikes_at_the_threshold_are_where_rounding_decides():
    # The known limit: at tau = 2 one spike charges a membrane to 0.5 exactly, and the input comes back as 1 - 1e-16.
    expected, got = steps_of(lambda: coupled(lif(v_threshold=0.5, tau=2.0)), torch.float64)
    assert torch.equal(got.out.logits, expected.out.logits)
    assert difference(got.gradients, expected.gradients) > 1e-4


def test_time_mean_loss():
    expected, got = steps_of(published, torch.float64, "time_mean")
    assert difference(got.gradients, expected.gradients) <= 1e-10


def test_autocast_keeps_the_stream_in_float32():
    x, y = batch()
    found = []
    for method in (BPTT(), ReversibleBlock()):
        model = prepared(method, published(), x)
        streams: list[torch.dtype] = []
        model.stages[1].f.register_forward_pre_hook(lambda _module, args, seen=streams: seen.append(args[0].dtype))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(run(method, model, x, y))
        assert set(streams) == {torch.float32}
    assert torch.equal(found[1].out.logits, found[0].out.logits)
    assert difference(found[1].gradients, found[0].gradients) <= 1e-2


class Half(nn.Module):
    """A residual that needs no neuron: exact to invert in this arithmetic."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


def test_equations():
    block = Coupling(Half(0.5), Half(0.25))
    x = torch.randn(3, 2, 4, 1, 1)
    x1, x2 = x.chunk(2, 2)
    y1 = x1 + 0.5 * x2
    assert torch.equal(block(x), torch.cat([y1, x2 + 0.25 * y1], 2))


def test_a_reversible_first_stage_and_the_inputs_gradient():
    gradients, inputs = [], []
    for method in (BPTT(), ReversibleBlock()):
        x, y = batch(dtype=torch.float64)
        model = build().double()
        torch.manual_seed(1)
        coupling = Coupling(
            *(nn.Sequential(lif()(), layer.Conv2d(1, 1, 3, padding=1, step_mode="m")) for _ in range(2))
        )
        model.stages.insert(0, coupling.double())
        gradients.append(run(method, prepared(method, copy.deepcopy(model), x), x, y).gradients)
        x.requires_grad_()
        run(method, prepared(method, model, x), x, y)
        inputs.append(x.grad)
    assert "stages.0.f.1.weight" in gradients[1]
    assert difference(gradients[1], gradients[0]) <= 1e-10
    assert torch.allclose(inputs[1], inputs[0], rtol=1e-9, atol=1e-14)


def test_frozen_residuals():
    x, y = batch(dtype=torch.float64)
    found = []
    for method in (BPTT(), ReversibleBlock()):
        model = published().double()
        model.stages[1].f.requires_grad_(False)
        model.stages[2].requires_grad_(False)
        found.append(run(method, prepared(method, model, x), x, y).gradients)
    assert difference(found[1], found[0]) <= 1e-10
    assert not any(name.startswith(("stages.1.f", "stages.2")) for name in found[1])


class Shared(Coupling):
    def __init__(self) -> None:
        node = lif()()
        super().__init__(nn.Sequential(node, Half(1.0)), nn.Sequential(node, Half(1.0)))


class More(Coupling):
    def __init__(self) -> None:
        super().__init__(Half(1.0), Half(1.0))
        self.extra = Half(1.0)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (build, "no stage of the model is a reversible coupling"),
        (lambda: published().bfloat16(), "half precision"),
        (lambda: StagedModel([nn.Identity(), Shared()], nn.Identity(), "none"), "stage 1: F and G share a LIFNode"),
        (lambda: StagedModel([More()], nn.Identity(), "none"), "extra.weight belongs to neither F nor G"),
    ],
)
def test_refusals(model, reason):
    assert reason in str(ReversibleBlock().supports(model(), loss()))


def test_the_plan_names_the_runs():
    method = ReversibleBlock()
    prepared(method, published(blocks=(3, 2)), batch()[0])
    assert method.plan() == {"stages": 7, "reversible_runs": [3, 2]}


def test_second_backward_and_changed_outputs_are_errors():
    x, y = batch()
    model, method = published(blocks=(1,), widths=(4,)), ReversibleBlock()
    prepared(method, model, x)
    kept: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda _module, args: kept.append(args[0]))

    class Twice(type(loss())):  # type: ignore[misc]
        def backward(self, value: Tensor) -> None:
            value.backward(retain_graph=True)
            value.backward()

    class Scribble(type(loss())):  # type: ignore[misc]
        def backward(self, value: Tensor) -> None:
            kept[-1].detach().add_(1)
            value.backward()

    with pytest.raises(RuntimeError, match="second backward"):
        run(method, model, x, y, Twice("per_step", nn.CrossEntropyLoss()))
    with pytest.raises(RuntimeError, match="modified in place"):
        run(method, model, x, y, Scribble("per_step", nn.CrossEntropyLoss()))


def cell(method: str, blocks: int = 2, **changes: Any) -> CellSpec:
    options = {"blocks": [blocks], "widths": [8]}
    return make_spec(method, model=registry.complete("models", "rev-resnet", options, where="test"), **changes)


def tracked(method: str, blocks: int) -> Any:
    bench = supported(cell(method, blocks))
    return track(bench.trainer(), bench)


def test_memory_does_not_grow_with_depth():
    ours = {blocks: tracked("reversible-block", blocks) for blocks in (2, 8)}
    assert len({report.saved_bytes for report in ours.values()}) == 1
    assert len({report.activation_bytes for report in ours.values()}) == 1
    plain = {blocks: tracked("bptt", blocks) for blocks in (2, 8)}
    assert plain[8].saved_bytes > 3 * plain[2].saved_bytes
    assert plain[8].activation_bytes > 5 * ours[8].activation_bytes


@pytest.mark.parametrize("precision", ["fp32", "amp-bf16"])
def test_prediction_equals_the_measured_bytes(precision):
    spec = cell("reversible-block", precision=precision)
    bench = supported(spec)
    real = track(bench.trainer(), bench)
    with faking(predicted(spec), bench.info) as fake_bench:
        fake = track(fake_bench.trainer(), fake_bench)
    assert (fake.peak_bytes, fake.saved_bytes) == (real.peak_bytes, real.saved_bytes)


KIT = [check for check in conformance.CHECKS if check not in (conformance.saved, conformance.memory)]
"""Bytes have tests of their own above."""


@pytest.mark.parametrize("check", KIT, ids=lambda check: check.__name__)
def test_conformance_on_a_net_with_reversible_blocks(check):
    # The kit's convnet has none.
    results = list(check(cell("reversible-block", 2)))
    assert all(result.passed is not False for result in results), results


def test_bench_has_reversible_stages():
    bench: Bench = supported(cell("reversible-block", 3))
    assert bench.trainer().method.plan()["reversible_runs"] == [3]
