"""The weights of a streamed layer, and the parameter-free modules around them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer
from torch import Tensor, nn

_CONVOLUTIONS: dict[type, Any] = {
    nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d,
    layer.Conv1d: F.conv1d, layer.Conv2d: F.conv2d, layer.Conv3d: F.conv3d, layer.WSConv2d: F.conv2d,
}  # fmt: skip
_LINEAR = (nn.Linear, layer.Linear, layer.WSLinear)


class Gradients:
    """Gradients of parameters, added up until the whole backward is over."""

    def __init__(self) -> None:
        self._found: dict[Tensor, Tensor] = {}

    def add(self, parameter: Tensor, grad: Tensor) -> None:
        """Add a gradient, unless the parameter is frozen."""
        if not parameter.requires_grad:
            return
        grad = grad.to(parameter.dtype).view_as(parameter)
        known = self._found.get(parameter)
        if known is None:
            self._found[parameter] = grad
        else:
            known.add_(grad)

    def take(self, parameter: Tensor) -> Tensor | None:
        """Hand a gradient out."""
        return self._found.pop(parameter, None)


@dataclass(frozen=True)
class Leaf:
    """A module without parameters that treats every sample and step by itself.

    Args:
        module: it.
        sequence: it takes ``[T, n, ...]``; otherwise it is applied to ``[T n, ...]``.
    """

    module: nn.Module
    sequence: bool


def run_leaves(leaves: Iterable[Leaf], x: Tensor) -> Tensor:
    """``x [T, n, ...]`` through modules one after the other."""
    for leaf in leaves:
        x = leaf.module(x) if leaf.sequence else leaf.module(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return x


class Op:
    """A convolution or linear layer.

    Args:
        module: it.
    """

    def __init__(self, module: Any) -> None:
        self.module = module

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """True for convolutions and linear layers whose backward is known."""
        if type(module) in _CONVOLUTIONS:
            return module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return type(module) in _LINEAR

    def bound(self, amp: torch.dtype | None) -> Bound:
        """The layer with its weights as they are now; ``amp`` is the dtype that autocast asks for."""
        return Bound(self.module, amp)


class Bound:
    """A layer with its effective weight: cast, and standardised where the layer does that."""

    def __init__(self, module: Any, amp: torch.dtype | None) -> None:
        self._module, self._amp = module, amp
        self._sources = [p for p in (module.weight, getattr(module, "gain", None)) if p is not None]
        self._weight = self._effective().detach()
        self._bias = None if module.bias is None else self._cast(module.bias.detach())
        self._grad_weight: Tensor | None = None
        self._grad_bias: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``[T, n, ...]`` through the layer."""
        x = self._cast(x)
        with _no_autocast(x):
            if type(self._module) not in _CONVOLUTIONS:
                return F.linear(x, self._weight, self._bias)
            m = self._module
            y = _CONVOLUTIONS[type(m)](
                x.flatten(0, 1), self._weight, self._bias, m.stride, m.padding, m.dilation, m.groups
            )
            return y.unflatten(0, x.shape[:2])

    def backward(self, dy: Tensor, x: Tensor, wanted: bool) -> Tensor | None:
        """Gradient of ``x`` where wanted; those of the weights are added up."""
        m, x = self._module, self._cast(x)
        trains = any(p.requires_grad for p in self._sources)
        biased = m.bias is not None and m.bias.requires_grad
        with _no_autocast(x):
            if type(m) in _CONVOLUTIONS:
                grad_x, grad_w, grad_b = torch.ops.aten.convolution_backward(
                    dy.flatten(0, 1), x.flatten(0, 1), self._weight, None if m.bias is None else [m.out_channels],
                    m.stride, m.padding, m.dilation, False, [0] * len(m.stride), m.groups, [wanted, trains, biased],
                )  # fmt: skip
                grad_x = grad_x.unflatten(0, x.shape[:2]) if wanted else None
            else:
                rows = dy.reshape(-1, dy.shape[-1])
                grad_x = dy @ self._weight if wanted else None
                grad_w = rows.t() @ x.reshape(-1, x.shape[-1]) if trains else None
                grad_b = rows.sum(0) if biased else None
        self._grad_weight = _sum(self._grad_weight, grad_w if trains else None)
        self._grad_bias = _sum(self._grad_bias, grad_b if biased else None)
        return grad_x

    def settle(self, into: Gradients) -> None:
        """Hand the weights' gradients over."""
        if self._grad_weight is not None:
            if len(self._sources) == 1 and not hasattr(self._module, "get_weight"):
                into.add(self._module.weight, self._grad_weight)
            else:
                train = [p for p in self._sources if p.requires_grad]
                with torch.enable_grad():
                    weight = self._effective()
                grads = torch.autograd.grad(weight, train, self._grad_weight.to(weight.dtype))
                for parameter, grad in zip(train, grads, strict=True):
                    into.add(parameter, grad)
        if self._grad_bias is not None:
            into.add(self._module.bias, self._grad_bias)
        self._grad_weight = self._grad_bias = None

    def _effective(self) -> Tensor:
        weight = self._module.get_weight() if hasattr(self._module, "get_weight") else self._module.weight
        return self._cast(weight)

    def _cast(self, x: Tensor) -> Tensor:
        return x if self._amp is None or x.dtype == torch.float64 else x.to(self._amp)


def _no_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Weights and inputs were cast already; the meta device knows no autocast."""
    return contextlib.nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    """Chunks' gradients in single precision at least."""
    if new is None:
        return old
    new = new.to(torch.promote_types(new.dtype, torch.float32))
    return new if old is None else old.add_(new)
