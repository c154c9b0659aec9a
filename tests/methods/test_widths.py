from __future__ import annotations

import math

import pytest
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import nn

from methods.packing import RAW
from methods.widths import input_widths, output_bound
from suites.torchvision_shim import ensure_torchvision
from tests.methods.nets import AddBlock, lif, over_time


def sew(cnf: str, inputs: int = 4, outputs: int = 4) -> nn.Module:
    ensure_torchvision()
    from spikingjelly.activation_based.model.sew_resnet import BasicBlock

    down = None if inputs == outputs else nn.Sequential(layer.Conv2d(inputs, outputs, 1), layer.BatchNorm2d(outputs))
    return BasicBlock(inputs, outputs, downsample=down, cnf=cnf, spiking_neuron=neuron.IFNode)


def bottleneck(cnf: str) -> nn.Module:
    ensure_torchvision()
    from spikingjelly.activation_based.model.sew_resnet import Bottleneck

    return Bottleneck(16, 4, cnf=cnf, spiking_neuron=neuron.IFNode)


@pytest.mark.parametrize(
    ("module", "given", "expected"),
    [
        (neuron.LIFNode(), math.inf, 1),
        (neuron.ParametricLIFNode(), None, 1),
        (neuron.IFNode(surrogate_function=surrogate.ATan(spiking=False)), 1, math.inf),
        (neuron.TernaryIFNode(), 1, None),
        (neuron.LIAFNode(nn.ReLU(), True), 1, None),
        (nn.Sequential(layer.Conv2d(1, 1, 1), layer.BatchNorm2d(1), neuron.LIFNode(), layer.MaxPool2d(2)), None, 1),
        (layer.SeqToANNContainer(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), 1, math.inf),
        (layer.MaxPool2d(2), 3, 3),
        (nn.AdaptiveMaxPool2d(1), None, None),
        (layer.Flatten(), 7, 7),
        (nn.Identity(), math.inf, math.inf),
        (layer.AvgPool2d(2), 1, math.inf),
        (layer.AdaptiveAvgPool2d(1), 1, math.inf),
        (layer.Dropout(0.5), 1, math.inf),
        (nn.Dropout2d(0.5), 1, math.inf),
        (layer.Linear(1, 1), 1, math.inf),
        (layer.WSConv2d(1, 1, 1), 1, math.inf),
        (nn.ReLU(), 1, None),
        (AddBlock(2, lif(), over_time), 1, None),
    ],
)
def test_rules(module, given, expected):
    assert output_bound(module, given) == expected


@pytest.mark.parametrize(
    ("cnf", "given", "expected"),
    [
        *[("ADD", 1, 2), ("ADD", 3, 4), ("ADD", None, None), ("ADD", math.inf, math.inf)],
        *[("AND", 1, 1), ("IAND", 1, 1), ("IAND", 2, None), ("AND", 2, None)],
    ],
)
def test_sew_blocks(cnf, given, expected):
    assert output_bound(sew(cnf), given) == expected
    assert output_bound(bottleneck(cnf), given) == expected


def test_sew_block_with_its_own_shortcut_starts_afresh():
    assert output_bound(sew("ADD", 4, 8), math.inf) == 2


def test_sum_over_residual_blocks_needs_more_bits_block_by_block():
    stem = nn.Sequential(layer.Conv2d(2, 4, 1), neuron.LIFNode())
    stages = [stem, layer.MaxPool2d(2), *[sew("ADD") for _ in range(4)], layer.AvgPool2d(2), neuron.LIFNode()]
    assert input_widths(stages) == [RAW, 1, 1, 2, 2, 4, 4, RAW]


def test_network_input_is_never_packed_but_what_is_made_of_it_may_be():
    assert input_widths([nn.Flatten(2), nn.Identity(), nn.Linear(4, 4), neuron.LIFNode()]) == [RAW, RAW, RAW, RAW]
    assert input_widths([layer.MaxPool2d(2), neuron.LIFNode(), layer.Linear(1, 1)]) == [RAW, None, 1]
