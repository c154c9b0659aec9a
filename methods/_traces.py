"""Presynaptic traces under the gradients of weights: everything else, values and input gradients, takes the spikes.

For a weight layer ``I[t] = W x[t] + b`` with a trace ``a[t]`` of its input, ``delta[t] = dL/dI[t]``::

    value  W x[t] + b      grad x[t] = W^T delta[t]      grad W = sum_t delta[t] a[t]^T      grad b = sum_t delta[t]

Each layer runs once. What it stores for its backward is the trace instead of the input, so traces cost nothing twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any, Self

import torch
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from harness.contracts import Loss, StagedModel
from methods._online import unsteppable

NEURONS = (neuron.LIFNode, neuron.IFNode)
WEIGHTS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear,
    layer.Conv1d, layer.Conv2d, layer.Conv3d, layer.Linear, layer.WSConv2d, layer.WSLinear,
)  # fmt: skip
"""Layers that are linear in their weight; a subclass may be anything."""
_UNTRACED = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
"""Their parameters are treated as biases are: no trace."""


class Traced(ABC):
    """A context in which the weights of a model learn from traces; one for each sequence.

    Args:
        model: in single-step mode; its weight layers are those of :data:`WEIGHTS`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights: list[Any] = [module for module in model.modules() if type(module) in WEIGHTS]
        self._hooks = [node.register_forward_hook(self._fired) for node in model.modules() if isinstance(node, NEURONS)]

    def __enter__(self) -> Self:
        """Put the traces under the weights."""
        for module in self._weights:
            module.forward = partial(self._forward, module)
        return self

    def __exit__(self, *_: Any) -> None:
        """Take them away."""
        for module in self._weights:
            del module.forward
        for hook in self._hooks:
            hook.remove()

    @abstractmethod
    def trace(self, module: nn.Module, x: Tensor) -> Tensor | None:
        """The trace ``a[t]`` of a weight layer's input ``x[t]``, like it without a graph; None where it has none."""

    @abstractmethod
    def _fired(self, node: Any, args: tuple[Tensor, ...], spikes: Tensor) -> None:
        """A neuron layer has run."""

    def _forward(self, module: Any, x: Tensor) -> Tensor:
        trace = self.trace(module, x)
        if trace is None:
            return type(module).forward(module, x)
        weight = module.get_weight() if hasattr(module, "get_weight") else module.weight
        operands = [x, trace, weight, module.bias]
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            # Here and with a graph: inside the function the cache of cast weights would be filled without one.
            dtype = torch.get_autocast_dtype(kind)
            operands = [o.to(dtype) if o is not None and o.dtype == torch.float32 else o for o in operands]
        with torch.autocast(kind, enabled=False):
            return _Weight.apply(*operands, module)


class _Weight(torch.autograd.Function):
    """A weight layer whose weight gradient takes the trace in place of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, trace: Tensor, weight: Tensor, bias: Tensor | None, module: Any) -> Tensor:
        ctx.save_for_backward(trace, weight)
        ctx.module = module
        return F.linear(x, weight, bias) if isinstance(module, nn.Linear) else module._conv_forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        trace, weight = ctx.saved_tensors
        x_needs, _, weight_needs, bias_needs, _ = ctx.needs_input_grad
        needs = [x_needs, weight_needs, bias_needs]
        gradients = (_linear if isinstance(ctx.module, nn.Linear) else _conv)(delta, trace, weight, needs, ctx.module)
        return gradients[0], None, gradients[1], gradients[2], None


def _linear(delta: Tensor, trace: Tensor, weight: Tensor, needs: list[bool], module: Any) -> list[Tensor | None]:
    rows = delta.flatten(0, -2)
    return [
        delta @ weight if needs[0] else None,
        rows.t() @ trace.flatten(0, -2) if needs[1] else None,
        rows.sum(0) if needs[2] else None,
    ]


def _conv(delta: Tensor, trace: Tensor, weight: Tensor, needs: list[bool], module: Any) -> tuple[Tensor | None, ...]:
    geometry = module.stride, module.padding, module.dilation, False, [0] * len(module.stride), module.groups
    return torch.ops.aten.convolution_backward(delta, trace, weight, [module.out_channels], *geometry, needs)


def leak(node: Any) -> float:
    """``lam`` of a neuron layer: ``1 - 1 / tau``, or 1 for IF."""
    return 1 - 1 / node.tau if isinstance(node, neuron.LIFNode) else 1.0


def neurons(model: nn.Module) -> list[tuple[str, Any]]:
    """Neuron layers of a supported model, with their names."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, NEURONS)]


def untraceable(model: StagedModel, loss: Loss) -> str | None:
    """Why the weights of ``model`` cannot learn from traces, or None."""
    for name, module in model.named_modules(remove_duplicate=False):
        reason = _problem(module)
        if reason is not None:
            return f"has no trace for {name or 'the model'} ({type(module).__name__}): {reason}"
    if not neurons(model):
        return "the model has no LIF or IF neuron, and so no trace"
    leaks: dict[float, str] = {}
    for name, node in neurons(model):
        leaks.setdefault(leak(node), name)
    if len(leaks) > 1:
        found = ", ".join(f"{name}: {value:.6g}" for value, name in leaks.items())
        return f"traces decay with the leak of the network, but its neurons have several ({found})"
    return unsteppable(model, loss) or _used_twice(model)


def untraceable_stages(model: StagedModel, loss: Loss) -> str | None:
    """As :func:`untraceable`, for methods whose neurons have to be in the stages."""
    reason = untraceable(model, loss)
    if reason is None and not neurons(model.stages):
        return "the model's stages have no LIF or IF neuron"
    return reason


def _problem(module: nn.Module) -> str | None:
    if isinstance(module, (neuron.BaseNode, neuron.SimpleBaseNode)):
        return None if type(module) in (neuron.LIFNode, neuron.IFNode) else "only LIFNode and IFNode have a fixed leak"
    if isinstance(module, _UNTRACED) or all(p is None for p in module._parameters.values()):
        return None
    if type(module) not in WEIGHTS:
        return "its parameters are not those of a convolution or a linear layer"
    if getattr(module, "padding_mode", "zeros") != "zeros" or isinstance(getattr(module, "padding", 0), str):
        return "its padding has to be zeros, and a number"
    return None


def _used_twice(model: nn.Module) -> str | None:
    seen: set[nn.Module] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module) in WEIGHTS and module in seen:
            return f"has one trace a layer, but {name} ({type(module).__name__}) runs twice a step"
        seen.add(module)
    return None
