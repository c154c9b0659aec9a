"""How many bits the input of each stage needs, from what its modules are.

A rule gives a bound: the largest integer that a module can emit for non-negative integers up to the bound of its input.
``inf`` means that the values are not small integers, None that no rule knows. A wrong rule costs a redone step, never a
wrong gradient: every pack verifies itself (:mod:`methods.packing`).

* neuron: 1; multi-step and single-step containers: their modules in turn;
* views, copies and max pooling keep the bound;
* SEW block (Fang et al., NeurIPS 2021): ADD sums the bounds of its branches; AND and IAND keep 1;
* a module with ``summed_branches()``, the branches whose outputs it adds: the sum of their bounds;
* weights, normalisation, average pooling and dropout (which rescales) give ``inf``;
* everything else: None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from spikingjelly.activation_based import layer, neuron
from spikingjelly.activation_based.layer.container import MultiStepContainer, SeqToANNContainer, StepModeContainer
from torch import nn

from methods.packing import width_for

Bound = float | None

VIEWS = (nn.Identity, nn.Flatten, nn.Unflatten)
"""Modules that compute nothing: there is nothing to recompute, and plain autograd stores nothing for them."""

_SEQUENTIAL = (nn.Sequential, StepModeContainer, SeqToANNContainer, MultiStepContainer)
_KEEPING = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
_REAL = (
    nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.modules.dropout._DropoutNd, layer.Dropout,
)  # fmt: skip
_SPIKING = (neuron.BaseNode, neuron.SimpleBaseNode)
# Subclasses whose output is not 0 or 1: {-1, 0, 1}, any activation, small integers.
_NOT_BINARY = (neuron.TernaryIFNode, neuron.TernaryLIFNode, neuron.LIAFNode, neuron.ILIFNode)
# By name: importing SpikingJelly's model package imports torchvision.
_SEW_MODULE = "spikingjelly.activation_based.model.sew_resnet"


def input_bounds(modules: Iterable[nn.Module]) -> list[Bound]:
    """Bound of each module's input, for modules that follow each other from the network's input on.

    What is still the network's own input is given as ``inf``, so that it stays raw: it is alive during the step anyway,
    a packed copy would only add.
    """
    bounds: list[Bound] = []
    bound: Bound = None
    data = True
    for module in modules:
        bounds.append(math.inf if data else bound)
        data = data and isinstance(module, VIEWS)
        bound = output_bound(module, bound)
    return bounds


def input_widths(modules: Iterable[nn.Module]) -> list[int | None]:
    """Width of each module's input; None where no rule knows it."""
    return [width_of(bound) for bound in input_bounds(modules)]


def output_bound(module: nn.Module, bound: Bound) -> Bound:
    """Largest value that ``module`` emits for integers in ``[0, bound]``."""
    if type(module) in _SEQUENTIAL:
        for child in module.children():
            bound = output_bound(child, bound)
        return bound
    if isinstance(module, _KEEPING):
        return bound
    if isinstance(module, _REAL):
        return math.inf
    if isinstance(module, _SPIKING):
        return _neuron_bound(module)
    if type(module).__module__ == _SEW_MODULE and hasattr(module, "cnf"):
        return _sew_bound(module, bound)
    if hasattr(module, "summed_branches"):
        return _sum_bound(module, bound)
    return None


def called_bound(name: str, given: Sequence[Any]) -> Bound:
    """Largest value of an operator's result.

    Args:
        name: of the operator.
        given: its arguments; bounds in place of the values that it reads.
    """
    numbers = [one for one in given[:2] if isinstance(one, (int, float))]
    if len(numbers) < min(2, len(given)) or min(numbers, default=-1.0) < 0:
        return None
    if name in ("chunk", "getitem"):
        return float(given[0])
    if len(given) != 2 or any(one != int(one) for one in numbers if one < math.inf):
        return None
    return {"add": sum(numbers), "mul": math.prod(numbers)}.get(name)


def _neuron_bound(node: nn.Module) -> Bound:
    if isinstance(node, _NOT_BINARY):
        return None
    return 1 if getattr(node.surrogate_function, "spiking", True) else math.inf


def _sum_bound(module: Any, bound: Bound) -> Bound:
    total = 0.0
    for branch in module.summed_branches():
        part = output_bound(branch, bound)
        if part is None:
            return None
        total += part
    return total


def _sew_bound(block: Any, bound: Bound) -> Bound:
    shortcut = bound if block.downsample is None else output_bound(block.downsample_sn, None)
    residual = output_bound(block.sn3 if hasattr(block, "sn3") else block.sn2, None)
    if shortcut is None or residual is None:
        return None
    if block.cnf == "ADD":
        return shortcut + residual
    # x * y, and x * (1 - y) with either branch as x: 0 or 1 for binary branches.
    return 1 if max(shortcut, residual) <= 1 else None


def width_of(bound: Bound) -> int | None:
    """The width for integers up to ``bound``; None where it is not known."""
    return None if bound is None else width_for(bound)
