"""NDOT: its decay, its traces written out by hand, and OTTT where the decays are the leak."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import Tensor, nn

from harness.contracts import StagedModel
from methods.ndot import NDOT, decay
from methods.ottt import OTTT
from tests.methods.nets import AddBlock, build, difference, lif, loss, no_norm, per_step, prepared, run
from tests.methods.test_ottt import SOFT, error, gradients

LAM, VTH, T, N = 0.5, 0.5, 6, 4


def test_decay_is_the_clamped_ratio_and_the_leak_where_there_is_none():
    v = torch.tensor([0.1, -0.1, 3.0, -3.0, 0.2, 0.0, 0.0])
    before = torch.tensor([0.5, 0.5, 1.0, 1.0, 0.0, 0.0, 1.0])
    expected = torch.tensor([0.2, -0.2, 0.5, -0.5, 0.5, 0.5, 0.0])
    assert torch.allclose(decay(v, before, LAM), expected)
    assert torch.equal(decay(v, before, 1.0)[2:4], torch.tensor([1.0, -1.0]))


def dense(*between: nn.Module) -> StagedModel:
    """linear - LIF - ``between`` - linear - LIF - linear, soft reset, no decay of the input; ``[T, N, 8]``."""
    torch.manual_seed(0)
    node = lif(**SOFT, decay_input=False, tau=1 / (1 - LAM), v_threshold=VTH)
    width = nn.Sequential(*between)(torch.zeros(1, N, 10)).shape[-1]
    stages = [nn.Sequential(layer.Linear(8, 10), node(), *between), nn.Sequential(layer.Linear(width, 6), node())]
    model = StagedModel(stages, layer.Linear(6, 3), "none")
    functional.set_step_mode(model, "m")
    return model


def inputs() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return torch.randn((T, N, 8), generator=draw, dtype=torch.float64), torch.randint(3, (N,), generator=draw)


def by_hand(model: StagedModel, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Weight gradients of ``dense()``, from the equations."""
    (one, first), (two, second), out = model.stages[0], model.stages[1], model.head
    psi = first.surrogate_function
    v1, v2 = torch.zeros(N, 10).double(), torch.zeros(N, 6).double()
    a1 = a2 = None
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for t in range(T):
        u1 = (LAM * v1 + one(x[t])).detach()
        s1 = (u1 >= VTH).double()
        u2 = (LAM * v2 + two(s1)).detach()
        s2 = (u2 >= VTH).double()
        new1, new2 = u1 - VTH * s1, u2 - VTH * s2
        if a1 is None or a2 is None:
            a1, a2 = s1, s2
        else:
            a1 = torch.where(v1 == 0, LAM, (new1 / v1).clamp(-LAM, LAM)) * a1 + s1
            a2 = torch.where(v2 == 0, LAM, (new2 / v2).clamp(-LAM, LAM)) * a2 + s2
        v1, v2 = new1, new2
        logits = out(s2).detach().requires_grad_()
        (delta_out,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y) / T, logits)
        ones = torch.ones_like
        delta2 = delta_out @ out.weight * psi.backward(ones(u2), u2 - VTH, psi.alpha)
        delta1 = delta2 @ two.weight * psi.backward(ones(u1), u1 - VTH, psi.alpha)
        for name, delta, trace in (
            ("stages.0.0", delta1, x[t]),
            ("stages.1.0", delta2, a1),
            ("head", delta_out, a2),
        ):
            total[f"{name}.weight"] += (delta.t() @ trace).detach()
            total[f"{name}.bias"] += delta.sum(0).detach()
    assert second is not None
    return total


def trained(method: Any, model: StagedModel, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    model = copy.deepcopy(model).double().train()
    return run(method, prepared(method, model, x), x, y).gradients


def test_equals_the_equations_written_out():
    model, (x, y) = dense().double(), inputs()
    expected = by_hand(model, x, y)
    ours = trained(NDOT(), model, x, y)
    assert all(g.any() for g in expected.values())
    assert difference(ours, expected) <= 1e-12
    assert difference(trained(OTTT(), model, x, y), expected) > 1e-2


def test_reduces_to_ottt_where_every_decay_is_the_leak():
    # A constant drive above threshold: all neurons of the first layer fire at every step and their membranes grow.
    model = dense().double()
    with torch.no_grad():
        model.stages[0][0].weight.zero_()
        model.stages[0][0].bias.copy_(torch.linspace(0.8, 1.2, 10))
    x, y = inputs()
    ndot, ottt = trained(NDOT(), model, x, y), trained(OTTT(), model, x, y)
    assert ottt["stages.1.0.weight"].any()
    assert error(ndot["stages.1.0.weight"], ottt["stages.1.0.weight"]) <= 1e-12
    # Where no membrane lasts, the ratio is undefined everywhere: hard reset to zero of neurons that always fire.
    for stage in model.stages:
        stage[1].v_reset = 0.0
    ndot, ottt = trained(NDOT(), model, x, y), trained(OTTT(), model, x, y)
    assert error(ndot["stages.1.0.weight"], ottt["stages.1.0.weight"]) <= 1e-12


class Reverse(nn.Module):
    """A permutation: what it does to spikes it has to do to traces."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(-1)


PATHS: dict[str, Any] = {
    "permutation": lambda: Reverse(),
    "average pooling": lambda: nn.AvgPool1d(2),
    "view": lambda: layer.Flatten(step_mode="m"),
    "identity": lambda: nn.Identity(),
}


@pytest.mark.parametrize("name", PATHS)
def test_traces_take_the_path_of_the_spikes(name):
    """As if the linear path were folded into the next weight."""
    path = PATHS[name]()
    model, (x, y) = dense(path).double(), inputs()
    unit = torch.eye(10).double()
    matrix = path(unit.unsqueeze(0)).squeeze(0)  # row i: what neuron i contributes
    folded = dense().double()
    folded.load_state_dict({key: value for key, value in model.state_dict().items() if key != "stages.1.0.weight"} | {
        "stages.1.0.weight": model.stages[1][0].weight @ matrix.t()
    })  # fmt: skip
    ours, expected = trained(NDOT(), model, x, y), by_hand(folded, x, y)
    expected["stages.1.0.weight"] = expected["stages.1.0.weight"] @ matrix
    assert difference(ours, expected) <= 1e-12


def test_dropout_masks_traces_as_it_masks_spikes():
    model, (x, y) = dense(layer.Dropout(0.8, step_mode="m")).double(), inputs()
    method, ours = NDOT(), copy.deepcopy(model).train()
    gradient = run(method, prepared(method, ours, x), x, y).gradients["stages.1.0.weight"]
    mask = next(m.mask for m in ours.modules() if isinstance(m, layer.Dropout))
    # An input is dead for the whole batch element; where it is for all of them, no gradient can reach its weight.
    dead = (mask == 0).all(0)
    assert dead.any()
    assert not gradient[:, dead].any()
    assert gradient[:, ~dead].any()


def test_max_pooling_takes_the_largest_trace():
    pool = nn.MaxPool1d(2)
    model, (x, y) = dense(pool).double(), inputs()
    traces: list[Tensor] = []

    class Watching(NDOT):
        class traces(NDOT.traces):  # noqa: N801
            def trace(self, module: nn.Module, x: Tensor) -> Tensor | None:
                trace = super().trace(module, x)
                if trace is not None and module.in_features == 5:
                    mine = next(iter(self._traces.values()))
                    assert torch.equal(trace, mine.view(N, 5, 2).amax(-1))
                    traces.append(trace)
                return trace

    trained(Watching(), model, x, y)
    assert len(traces) == T


def test_plain_sequences_only():
    def reason(middle: Any, norm: Any = no_norm) -> str:
        return NDOT().supports(build(lif(**SOFT), norm, middle=lambda c: middle), loss())

    block = reason(AddBlock(4, lif(**SOFT), per_step), per_step)
    assert "stages.1 (AddBlock) is none" in block
    assert "draws a new mask" in reason(nn.Dropout(0.5))
    assert "stages.1 (BatchNorm2d) is none" in reason(layer.BatchNorm2d(4, step_mode="m"))
    assert reason(nn.Identity()) is None
    assert reason(nn.Identity(), per_step) is None

    class Branched(StagedModel):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stages(x) + 0)

    model = build(lif(**SOFT), no_norm, middle=lambda c: nn.Identity())
    assert "overrides StagedModel.forward" in NDOT().supports(Branched(model.stages, model.head, "none"), loss())


def test_over_several_steps_it_is_neither_bptt_nor_ottt():
    from tests.methods.test_ottt import chain

    model = chain(lif(**SOFT))
    ours, ottt = gradients(NDOT(), model).gradients, gradients(OTTT(), model).gradients
    assert 1e-3 < difference(ours, ottt) < 1.0
