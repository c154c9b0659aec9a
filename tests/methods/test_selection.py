"""Copies of layers that follow each other in any selection, and which selection is taken under a budget."""

from __future__ import annotations

from functools import partial
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

from harness.contracts import StagedModel
from methods._architecture import fresh_copy
from methods._local import Part, partition, stages_of
from methods._measure import Setting, activation_bytes, faked, faking, shapes
from methods._selection import Choice, Costs, Network, select, uniform, unlimited
from tests.methods.nets import AddBlock, batch, build, conv, lif, loss, per_step

CIFAR_WIDTHS = [2] * 6 + [4] * 5 + [8] * 5
"""ResNet-32's stem and 15 blocks, 16-32-64 channels there."""


class Residual(nn.Module):
    """conv - norm - neuron, conv - norm, shortcut, neuron; as SpikingJelly's spiking ResNet blocks."""

    def __init__(self, inputs: int, outputs: int, stride: int, node: Any) -> None:
        super().__init__()
        weight = partial(layer.Conv2d, bias=False, step_mode="m")
        self.first = nn.Sequential(weight(inputs, outputs, 3, stride, 1), per_step(outputs), node())
        self.second = nn.Sequential(weight(outputs, outputs, 3, 1, 1), per_step(outputs), node())
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(weight(inputs, outputs, 1, stride), per_step(outputs), node())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)) + self.shortcut(x)


def cifar_resnet(block: Any = None, size: int = 16) -> StagedModel:
    """16 layers, down-sampling where channels double; sample ``(2, size, size)``."""
    torch.manual_seed(0)
    node, stages = lif(), [conv(2, 2, lif(), per_step)]
    for inputs, outputs in pairwise(CIFAR_WIDTHS):
        stride = outputs // inputs
        if block is not None:
            stages.append(block(inputs, outputs, stride, node))
        else:
            weight = layer.Conv2d(inputs, outputs, 3, stride, 1, bias=False, step_mode="m")
            stages.append(nn.Sequential(weight, per_step(outputs), node()))
    head = nn.Sequential(layer.Flatten(step_mode="m"), layer.Linear(8 * (size // 4) ** 2, 3, step_mode="m"))
    return StagedModel(stages, head, "per_step")


def network(model: StagedModel, x: torch.Tensor) -> Network:
    return Network(model, shapes(model, x, "m"), "m")


def follow(net: Network, *numbers: int) -> tuple[list[nn.Module], list[tuple[int, ...]]]:
    """Copies after layer ``numbers[0]``, and the sample shapes between them."""
    given = [net.shapes[numbers[0] + 1]]
    copies = []
    for number in numbers[1:]:
        new = net.follow(number, given[-1])
        assert new is not None
        copies.append(new)
        given.append(tuple(new(torch.zeros(2, 3, *given[-1])).shape[2:]))
    return copies, given


def test_uniform_selection_is_that_of_auglocal():
    assert uniform(0, 15, 5) == (3, 6, 9, 12, 15)
    assert uniform(3, 12, 4) == (6, 9, 12, 15)
    assert uniform(0, 15, 2) == (8, 15)  # 7.5: python rounds half to even
    assert uniform(2, 3, 3) == (3, 4, 5)


def test_shapes_are_those_of_a_forward():
    x = torch.zeros(3, 2, 2, 16, 16)
    found = shapes(cifar_resnet(Residual), x, "m")
    assert found[0] == (2, 16, 16)
    assert found[1:17] == [(c, 32 // c, 32 // c) for c in CIFAR_WIDTHS]
    assert found[-1] == (3,)


@pytest.mark.parametrize("block", [None, Residual])
def test_fourfold_jump_in_channels_has_stride_two_there_and_in_the_next_copy(block):
    net = network(cifar_resnet(block), torch.zeros(2, 1, 2, 16, 16))
    assert follow(net, 0, 15)[1] == [(2, 16, 16), (8, 8, 8)]
    assert follow(net, 0, 14, 15)[1] == [(2, 16, 16), (8, 8, 8), (8, 4, 4)]
    assert follow(net, 0, 8, 15)[1] == [(2, 16, 16), (4, 8, 8), (8, 4, 4)]
    # A copy with a stride of its own has no second one.
    assert follow(net, 0, 11, 15)[1] == [(2, 16, 16), (8, 8, 8), (8, 4, 4)]
    assert follow(net, 0, 3, 6, 9, 12, 15)[1][1:] == [(2, 16, 16), (4, 8, 8), (4, 8, 8), (8, 4, 4), (8, 4, 4)]
    assert follow(net, 10, 15)[1] == [(4, 8, 8), (8, 4, 4)]


def test_all_later_layers_are_the_rest_of_the_network():
    for block in (None, Residual):
        model = cifar_resnet(block)
        net = network(model, torch.zeros(2, 1, 2, 16, 16))
        copies, given = follow(net, 4, *range(5, 16))
        assert given == net.shapes[5:17]
        for new, number in zip(copies, range(5, 16), strict=True):
            assert repr(new) == repr(net.layers[number])
            for a, b in zip(new.parameters(), net.layers[number].parameters(), strict=True):
                assert a is not b
                assert a.shape == b.shape
                assert not torch.equal(a, b) or bool((b == b.flatten()[0]).all())


def test_blocks_are_adapted_before_and_chains_inside():
    plain, block = (network(cifar_resnet(kind), torch.zeros(2, 1, 2, 16, 16)) for kind in (None, Residual))
    (chain,), _ = follow(plain, 0, 8)
    assert chain[0][0].in_channels == 2
    assert chain[0][0].stride == (2, 2)
    assert plain.layers[8][0][0].in_channels == 4
    (adapted,), _ = follow(block, 0, 8)
    kinds = [type(module).__name__ for module in adapted]
    assert kinds == ["Conv2d", "PerStepBatchNorm2d", "LIFNode", "Sequential"]
    assert adapted[0].weight.shape == (4, 2, 1, 1)
    assert adapted[1].weight.shape == (4,)
    assert repr(adapted[3]) == repr(block.layers[8])


def test_linear_layers_take_what_arrives():
    layers = [layer.Flatten(step_mode="m"), layer.Linear(4 * 16, 10, step_mode="m"), lif()()]
    given, seen = (4, 8, 8), (4, 4, 4)
    new = fresh_copy(nn.Sequential(nn.Sequential(*layers)), given, seen, (10,), "m")
    assert new is not None
    assert new(torch.zeros(2, 3, *given)).shape == (2, 3, 10)
    assert 0.1 < float(new[0][1].weight.detach().std() / layers[1].weight.detach().std()) < 0.9


def test_a_layer_that_cannot_follow_is_not_offered():
    grouped = nn.Sequential(layer.Conv2d(4, 4, 3, padding=1, groups=4, step_mode="m"), lif()())
    assert fresh_copy(grouped, (4, 8, 8), (4, 8, 8), (4, 8, 8), "m") is not None
    assert fresh_copy(grouped, (2, 8, 8), (4, 8, 8), (4, 8, 8), "m") is None
    tokens = nn.Sequential(AddBlock(4, lif(), per_step))
    assert fresh_copy(tokens, (2, 8), (4, 8), (4, 8), "m") is None


def test_copies_have_fresh_statistics():
    block = conv(2, 2, lif(), per_step)
    block[1].running_mean.fill_(3.0)
    new = fresh_copy(block, (2, 4, 4), (2, 4, 4), (2, 4, 4), "m")
    assert new is not None
    assert torch.equal(new[1].running_mean, torch.zeros(2))
    assert torch.equal(block[1].running_mean, torch.full((2,), 3.0))


@pytest.mark.parametrize("pooled", [False, True])
def test_max_subset_is_as_deep_as_any_selection_that_fits(pooled):
    """Against all subsets, measured one by one."""
    torch.manual_seed(0)
    stages = [conv(2, 4, lif(), per_step)]
    for number, (inputs, outputs) in enumerate(((4, 4), (4, 12), (12, 6), (6, 6))):
        stages += [conv(inputs, outputs, lif(), per_step)]
        stages += [layer.AvgPool2d(2, step_mode="m")] if pooled and number in (1, 2) else []
    size = 2 if pooled else 8
    head = nn.Sequential(layer.Flatten(step_mode="m"), layer.Linear(6 * size**2, 3, step_mode="m"))
    model = StagedModel(stages, head, "per_step")
    functional.set_step_mode(model, "s")
    x, _ = batch(2)
    runs = [range(1), range(1, 5)]
    found, setting = shapes(model, x, "s"), Setting.of(x, loss(), "s", None)
    with faking() as mode:
        net = Network(faked(model, mode), found, "s")
        costs = Costs(net, setting)
        own = costs.along((0,), found[0])
        assert own is not None
        measured: dict[tuple[int, ...], int] = {}
        for chosen in (c for count in range(5) for c in combinations(range(1, 5), count)):
            along = costs.along(chosen, found[1])
            assert along is not None
            part = Part(stages_of(net.model, net.ranges, runs[0]), net.auxiliary(Choice(chosen, along[1])), False)
            measured[chosen] = activation_bytes(part, found[0], setting)
            assert own[0] + along[0] <= measured[chosen]  # what is skipped unmeasured would not have fitted
        for budget in sorted(set(measured.values()))[::2]:
            (got,) = select(net, runs, "max_subset", budget, setting)
            assert len(got.layers) == max(len(c) for c, value in measured.items() if value <= budget)
            assert got.activation_bytes == measured[got.layers]
            (got,) = select(net, runs, "uniform_max_depth", budget, setting)
            fitting = [d for d in range(1, 5) if measured[uniform(0, 4, d)] <= budget]
            assert got.layers == (uniform(0, 4, max(fitting)) if fitting else ())


def test_no_budget_needs_no_measurement():
    model = cifar_resnet()
    net = network(model, torch.zeros(2, 1, 2, 16, 16))
    runs = partition(16, 4)
    assert [c.layers for c in unlimited(net, runs, "classifier_only")] == [(), (), ()]
    for rule in ("max_subset", "uniform_max_depth"):
        chosen = unlimited(net, runs, rule)  # type: ignore[arg-type]
        assert [c.layers for c in chosen] == [tuple(range(n, 16)) for n in (4, 8, 12)]
        assert [c.activation_bytes for c in chosen] == [None] * 3
        out = net.auxiliary(chosen[1])(torch.zeros(2, 3, *net.shapes[8]))
        assert out.shape == (2, 3, 3)


def test_measuring_leaves_the_model_as_it_was():
    model = build(norm=per_step)
    x, _ = batch(2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found, setting = shapes(model, x, "m"), Setting.of(x, loss(), "m", None)
    with faking() as mode:
        select(Network(faked(model, mode), found, "m"), partition(3, 3), "max_subset", 10**6, setting)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.v == 0.0 for module in model.modules() if hasattr(module, "v"))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_choice_of_another_network_is_refused():
    net = network(cifar_resnet(Residual), torch.zeros(2, 1, 2, 16, 16))
    with pytest.raises(ValueError, match=r"layer 15 cannot follow in layers \(15,\) of this network"):
        net.auxiliary(Choice((15,), ((2, 16), (8, 4, 4))))
