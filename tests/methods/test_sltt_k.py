"""SLTT-K against SLTT: all subsets together, the draw, the cost."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import layer
from torch.utils._python_dispatch import TorchDispatchMode

from methods.sltt import SLTT
from methods.sltt_k import REPORTED, SLTTK, SLTTKOptions
from tests.methods.nets import batch, build, difference, lif, loss, no_norm, per_step, plif, prepared, run
from tests.methods.test_memory import track

NETS: dict[str, Any] = {
    "per-step-norm": lambda: build(norm=per_step),
    "no-norm": lambda: build(lif(v_reset=None, detach_reset=True), no_norm),
    "plif": lambda: build(plif(), per_step),
}


def make(k: int, *chosen: list[int]) -> SLTTK:
    method = SLTTK(SLTTKOptions(k=k))
    if chosen:
        method.replay({"steps": chosen})
    return method


class Counting(TorchDispatchMode):
    """How often each operator ran."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_mean_over_all_subsets_is_k_over_t_times_sltt(net, k):
    T = 4
    x, y = batch(T, dtype=torch.float64)
    model = NETS[net]().double()
    reference = copy.deepcopy(model)
    sltt = run(SLTT(), prepared(SLTT(), reference, x), x, y)
    prepared(SLTT(), model, x)
    state = copy.deepcopy(model.state_dict())
    subsets = list(itertools.combinations(range(T), k))
    total = {name: torch.zeros_like(g) for name, g in sltt.gradients.items()}
    for subset in subsets:
        model.load_state_dict(state)
        ours = run(make(k, list(subset)), model, x, y)
        assert torch.equal(ours.out.loss, sltt.out.loss)
        assert torch.equal(ours.out.logits, sltt.out.logits)
        assert all(torch.equal(ours.buffers[name], value) for name, value in sltt.buffers.items())
        assert ours.updates == 1
        for name, gradient in ours.gradients.items():
            total[name] += gradient / len(subsets) * T / k
    assert difference(total, sltt.gradients) <= 1e-12


def test_all_steps_are_sltt():
    x, y = batch(4, dtype=torch.float64)
    gradients = []
    for method in (SLTT(), make(4)):
        model = NETS["per-step-norm"]().double()
        gradients.append(run(method, prepared(method, model, x), x, y).gradients)
    assert difference(*gradients) == 0.0


def test_the_draw_follows_the_global_generator_and_moves_it_on():
    x, y = batch(6)
    method = make(2)
    model = prepared(method, NETS["no-norm"](), x)
    first = run(method, model, x, y, seed=1).gradients
    state = torch.get_rng_state()
    run(method, model, x, y, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    other = run(method, model, x, y, seed=2).gradients
    assert difference(run(method, model, x, y, seed=1).gradients, first) == 0.0
    assert difference(other, first) > 0
    # Not reseeded, every batch draws anew.
    drawn = set()
    torch.manual_seed(0)
    for _ in range(20):
        method._drawn.clear()
        method.step(model, x, y, loss(), lambda: None)
        drawn.add(tuple(method._drawn[0]))
        for module in model.modules():
            if hasattr(module, "reset"):
                module.reset()
    assert len(drawn) > 8


def test_every_set_is_equally_likely():
    torch.manual_seed(0)
    method = make(2)
    counts: Counter[tuple[int, ...]] = Counter()
    draws = 3000
    for _ in range(draws):
        counts[tuple(sorted(method._draw(4)))] += 1
        torch.rand(())
    assert sorted(counts) == list(itertools.combinations(range(4), 2))
    # Six sets, 500 expected of each, standard deviation 20.
    assert max(abs(count - draws / 6) for count in counts.values()) < 100


def test_dropout_masks_are_those_of_sltt():
    x, y = batch(4, dtype=torch.float64)
    outputs = []
    for method in (SLTT(), make(2)):
        model = build(norm=per_step, middle=lambda c: layer.Dropout(0.4, step_mode="m")).double()
        outputs.append(run(method, prepared(method, model, x), x, y).out)
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    assert torch.equal(outputs[0].logits, outputs[1].logits)


def test_same_peak_less_work():
    x, y = batch(6)
    peaks = [track(method, NETS["no-norm"](), x, y).peak_bytes for method in (SLTT(), make(2), make(1))]
    assert peaks[1] == peaks[0]
    assert peaks[2] <= peaks[0]
    work = []
    for method in (SLTT(), make(2)):
        model = prepared(method, NETS["no-norm"](), x)
        with Counting() as counting:
            run(method, model, x, y)
        work.append(
            [counting.calls[op.default] for op in (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)]
        )
    convolutions = 3
    assert work == [[6 * convolutions, 6 * convolutions], [6 * convolutions, 2 * convolutions]]


def test_saved_bytes_are_flat_whichever_steps_are_drawn():
    values = set()
    for T, chosen in ((2, [0]), (4, [0]), (4, [3]), (16, [7])):
        values.add(track(make(1, chosen, chosen), NETS["per-step-norm"](), *batch(T)).saved_bytes)
    assert len(values) == 1


@pytest.mark.parametrize("first", [[0], [2]])
def test_autocast_gives_every_weight_its_gradient(first):
    # A step without gradient before one with: its cast weights must not be used again.
    x, y = batch(4)
    method = make(1, first)
    model = prepared(method, NETS["per-step-norm"](), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = run(method, model, x, y)
    assert set(ours.gradients) == {name for name, _ in model.named_parameters()}
    assert all(g.any() for g in ours.gradients.values())


def test_more_steps_than_there_are_is_an_error():
    x, _ = batch(4)
    with pytest.raises(ValueError, match="k is 5, but there are T = 4 time steps; allowed: 1 to 4"):
        make(5).prepare(NETS["no-norm"](), x, loss())
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        SLTTKOptions(k=0)


def test_the_plan_holds_the_first_draws_and_a_replay_repeats_them():
    x, y = batch(5)
    method = make(2)
    model = prepared(method, NETS["no-norm"](), x)
    gradients = [run(method, model, x, y, seed=seed).gradients for seed in range(REPORTED + 1)]
    plan = method.plan()
    assert plan["k"] == 2
    assert len(plan["steps"]) == REPORTED
    again = make(2)
    again.replay(plan)
    for wanted in gradients[:REPORTED]:
        assert difference(run(again, model, x, y, seed=99).gradients, wanted) == 0.0
