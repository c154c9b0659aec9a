"""Copies of a network's layers with weights of their own, made to follow each other in any selection.

A copy keeps the architecture and draws new weights. Where layers between were left out, what arrives does not fit, and

* channels are adapted by the copy's first weight, or, in a block whose branches must agree, by a 1x1 convolution (with
  the block's own kind of normalisation and neuron) before it;
* lost down-sampling is made up for: a copy without stride of its own gets stride 2 when its input is at least twice as
  large as in the network. One factor of 2 a layer: the rest is left to the next copy (as the auxiliary networks of
  AugLocal, ICLR 2024, do: a fourfold jump in channels has stride 2 there and in the layer after it).

Copies have no dropout: drawing its masks would change those of the network itself.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from spikingjelly.activation_based import base, layer, neuron
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

M = TypeVar("M", bound=nn.Module)
Shape = tuple[int, ...]
"""Of one sample at one time step, channels first: ``(C, H, W)``, ``(C, L)`` or ``(C,)``."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WEIGHTS = (*_CONVOLUTIONS, nn.Linear)
_NEURONS = (neuron.BaseNode, neuron.SimpleBaseNode)
_DROPOUT = (_DropoutNd, layer.Dropout)


def copied(module: M, value: Callable[[Tensor], Tensor]) -> M:
    """A deep copy whose parameters and buffers hold ``value`` of the original's, real or fake."""
    memo: dict[int, Any] = {id(buffer): value(buffer) for buffer in module.buffers()}
    for parameter in module.parameters():
        with unset_fake_temporarily():
            old = parameter.detach()
        memo[id(parameter)] = nn.Parameter(value(old), requires_grad=parameter.requires_grad)
    with unset_fake_temporarily():
        return copy.deepcopy(module, memo)


def fresh_copy(module: nn.Module, given: Shape, seen: Shape, out: Shape, step_mode: str) -> nn.Module | None:
    """A copy of a layer with weights of its own, for an input that is not the one it has in the network.

    Args:
        module: the layer, freshly initialised, its states reset.
        given: what arrives.
        seen: what arrives in the network.
        out: what leaves in the network.
        step_mode: of the layer's modules.

    Returns:
        The copy, or None where it cannot follow.
    """
    new = copied(module, _redrawn)
    for name, part in list(new.named_modules()):
        if isinstance(part, _NormBase):
            part.reset_running_stats()
        if isinstance(part, _DROPOUT):
            new.set_submodule(name, nn.Identity())
    halve = _down_samples_late(given, seen, out)
    if given == seen and not halve:
        return new
    like = next(new.parameters())
    lead = (1,) if step_mode == "s" else (1, 1)
    entry = _entry(new, torch.zeros((*lead, *given), dtype=like.dtype, device=like.device))
    if entry is not None:
        return new if _admit(*entry, halve=halve) else None
    if given[0] == seen[0] and len(given) == len(seen) and not halve:
        return new
    if len(given) != 3 or len(seen) != 3:
        return None
    return nn.Sequential(*_adapter(new, given[0], seen[0], 2 if halve else 1, step_mode), new)


def _redrawn(value: Tensor) -> Tensor:
    """Normal with the mean and spread of ``value``: constants stay, weights keep the scale of their initialiser."""
    if not value.is_floating_point():
        return value.clone()
    return value.mean() + value.std(correction=0) * torch.randn_like(value)


def _down_samples_late(given: Shape, seen: Shape, out: Shape) -> bool:
    if not len(given) == len(seen) == len(out) == 3:
        return False
    has_stride = seen[1] >= 2 * out[1]
    return not has_stride and given[1] >= 2 * seen[1]


def _entry(module: nn.Module, x: Tensor) -> tuple[nn.Module, torch.Size] | None:
    """The first weight of a plain chain of modules, and the shape that reaches it; None in any other structure."""
    for child in _chain(module):
        if isinstance(child, _WEIGHTS):
            return child, x.shape
        if any(True for _ in child.parameters()):
            return None
        if not isinstance(child, base.MemoryModule):  # neurons keep the shape
            x = child(x)
    return None


def _chain(module: nn.Module) -> list[nn.Module]:
    if type(module) is not nn.Sequential:
        return [module]
    return [inner for child in module for inner in _chain(child)]


def _admit(weight: nn.Module, incoming: torch.Size, *, halve: bool) -> bool:
    """Fit a weight to its input; False where that is not possible."""
    if isinstance(weight, nn.Linear):
        if incoming[-1] != weight.in_features:
            weight.weight = _resized(weight.weight, incoming[-1])
            weight.in_features = incoming[-1]
        return True
    assert isinstance(weight, _CONVOLUTIONS)
    channels = incoming[-1 - len(weight.kernel_size)]
    if channels != weight.in_channels:
        if weight.groups != 1:
            return False
        weight.weight = _resized(weight.weight, channels)
        weight.in_channels = channels
    if halve:
        if isinstance(weight.padding, str):
            return False
        weight.stride = tuple(2 for _ in weight.stride)
    return True


def _resized(weight: Tensor, inputs: int) -> nn.Parameter:
    """Another number of inputs; the spread keeps the variance of a sum over them."""
    old = weight.detach()
    spread = old.std(correction=0) * math.sqrt(old.shape[1] / inputs)
    shape = (old.shape[0], inputs, *old.shape[2:])
    return nn.Parameter(spread * torch.randn(shape, dtype=old.dtype, device=old.device), weight.requires_grad)


def _adapter(block: nn.Module, given: int, seen: int, stride: int, step_mode: str) -> list[nn.Module]:
    """1x1 convolution, and the block's own kind of normalisation and neuron."""
    like = next(block.parameters()).detach()
    norm = next((m for m in block.modules() if isinstance(m, _NormBase)), None)
    node = next((m for m in block.modules() if isinstance(m, _NEURONS)), None)
    conv = layer.Conv2d(given, seen, kernel_size=1, stride=stride, bias=norm is None, step_mode=step_mode)
    parts: list[nn.Module] = [copied(conv, lambda value: value.to(like))]
    if norm is not None:
        parts.append(_norm_like(norm, seen))
    if node is not None:
        parts.append(copied(node, Tensor.clone))
    return parts


def _norm_like(norm: M, channels: int) -> M:
    """A freshly initialised normalisation of the same kind for another number of channels."""
    new: Any = copied(norm, lambda value: value.new_empty(channels) if value.dim() else value.clone())
    new.num_features = channels
    new.reset_parameters()
    return new
