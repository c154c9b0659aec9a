"""The reversible node over a whole sequence, with its three backwards (:mod:`methods.kernels.reversible_torch`).

* ``stored``: plain autograd, which keeps every step's intermediates;
* ``reforward``: keeps the outputs and the last membrane; the backward inverts a step, runs it forward again with a
  graph and propagates through that - what reversible layers usually do;
* ``inverse_graph``: as ``reforward``, but the gradient comes from the inverse's own intermediates (the paper's).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor
from torch.autograd.function import once_differentiable

from methods.kernels.reversible_torch import Coefficients, Groups, gradient, inverse, step

Backward = Literal["stored", "reforward", "inverse_graph"]


@dataclass(frozen=True)
class Layout:
    """How a step's tensor is cut into groups.

    Args:
        groups: how many.
        dim: along which dimension of one step.
    """

    groups: int
    dim: int

    def split(self, x: Tensor) -> Groups:
        """Views of the groups of ``[N, ...]``."""
        return list(x.chunk(self.groups, self.dim))

    def join(self, groups: Groups, out: Tensor) -> None:
        """Write the groups into ``out [N, ...]``."""
        torch.cat(groups, self.dim, out=out)


def stored(x: Tensor, v0: Tensor, c: Coefficients, layout: Layout) -> tuple[Tensor, Tensor]:
    """``Y [T, N, ...]`` and the last membrane ``[N, ...]``, for autograd.

    Args:
        x: the input ``[T, N, ...]``.
        v0: the membrane before it, ``[N, ...]``.
        c: the constants.
        layout: the groups.
    """
    v, outputs = layout.split(v0), []
    for t in range(x.shape[0]):
        y, v = step(layout.split(x[t]), v, c)
        outputs.append(torch.cat(y, layout.dim))
    return torch.stack(outputs), torch.cat(v, layout.dim)


def inverted(
    x: Tensor, v0: Tensor, c: Coefficients, layout: Layout, backward: Backward, arrived: Callable[[Tensor], None]
) -> tuple[Tensor, Tensor]:
    """As :func:`stored`, keeping the outputs and the last membrane only.

    Args:
        x: the input ``[T, N, ...]``.
        v0: the membrane before it, ``[N, ...]``.
        c: the constants.
        layout: the groups.
        backward: ``reforward`` or ``inverse_graph``.
        arrived: called in the backward with the membrane that the inverse ends at, which should be ``v0``.
    """
    return _Inverted.apply(x, v0, c, layout, backward, arrived)


class ReversibleLIFNode(neuron.BaseNode):
    """The node as a multi-step neuron layer, ``[T, N, ...] -> [T, N, ...]``, real-valued output.

    Args:
        coefficients: the constants.
        layout: the groups.
        backward: one of the three backwards.
    """

    def __init__(self, coefficients: Coefficients, layout: Layout, backward: Backward = "stored") -> None:
        super().__init__(coefficients.v_threshold, surrogate_function=coefficients.surrogate, step_mode="m")
        self.coefficients, self.layout, self.backward = coefficients, layout, backward
        self.largest: Tensor | None = None
        """``max|X|`` of the last forward, a scalar."""
        self.drift: Tensor | None = None
        """Largest distance of an inverse's end from the start of its sequence, over all backwards; a scalar."""

    def supported_step_mode(self) -> tuple[str]:
        """Multi-step only."""
        return ("m",)

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Outputs ``[T, N, ...]``, in float32 for an input of half precision; leaves the last membrane behind.

        Raises:
            ValueError: the input does not divide into the groups.
        """
        x = x_seq.float() if x_seq.dtype in (torch.bfloat16, torch.float16) else x_seq
        size, groups = x[0].shape[self.layout.dim], self.layout.groups
        if size % groups:
            shape = tuple(x_seq.shape)
            raise ValueError(f"dimension {self.layout.dim} of one step of {shape}, {size}, does not divide by {groups}")
        low, high = x.detach().aminmax()
        self.largest = torch.maximum(high, -low)
        start = self._memories["v"]
        v0: Any = self.materialize_states((x,), (start,), "m")[0]
        if self.backward == "stored":
            y, v = stored(x, v0, self.coefficients, self.layout)
        else:
            how = self.coefficients, self.layout, self.backward
            y, v = inverted(x, v0, *how, arrived=self._arrival(start))
        self._memories["v"] = v
        return y

    def _arrival(self, start: Tensor | float) -> Callable[[Tensor], None]:
        def arrived(v: Tensor) -> None:
            low, high = (v - start).aminmax()
            distance = torch.maximum(high, -low)
            self.drift = distance if self.drift is None else torch.maximum(self.drift, distance)

        return arrived


class _Inverted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, v0: Tensor, c: Coefficients, layout: Layout, backward: Backward, arrived: Any
    ) -> tuple[Tensor, Tensor]:
        outputs, v = torch.empty_like(x), layout.split(v0)
        for t in range(x.shape[0]):
            y, v = step(layout.split(x[t]), v, c)
            layout.join(y, out=outputs[t])
        last = torch.cat(v, layout.dim)
        ctx.save_for_backward(outputs, last)
        ctx.how = c, layout, backward, arrived
        ctx.set_materialize_grads(False)
        return outputs, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
        (outputs, last), (c, layout, backward, arrived) = ctx.saved_tensors, ctx.how
        grad_step = _through_inverse if backward == "inverse_graph" else _through_forward
        after = layout.split(last)
        grad_v = layout.split(torch.zeros_like(last) if grad_last is None else grad_last.clone())
        grad_x = torch.empty_like(outputs)
        for t in reversed(range(outputs.shape[0])):
            grad_y = torch.zeros_like(last) if grad is None else grad[t]
            groups, grad_v, after = grad_step(layout.split(outputs[t]), after, layout.split(grad_y), grad_v, c)
            layout.join(groups, out=grad_x[t])
        arrived(torch.cat(after, layout.dim))
        return grad_x, torch.cat(grad_v, layout.dim) if ctx.needs_input_grad[1] else None, None, None, None, None


def _through_inverse(
    y: Groups, after: Groups, grad_y: Groups, grad_after: Groups, c: Coefficients
) -> tuple[Groups, Groups, Groups]:
    found = inverse(y, after, c)
    return *gradient(grad_y, grad_after, found, c), found.v


def _through_forward(
    y: Groups, after: Groups, grad_y: Groups, grad_after: Groups, c: Coefficients
) -> tuple[Groups, Groups, Groups]:
    found = inverse(y, after, c)
    with torch.enable_grad():
        leaves = [group.detach().requires_grad_() for group in (*found.x, *found.v)]
        again = step(leaves[: len(y)], leaves[len(y) :], c)
    gradients = torch.autograd.grad([*again[0], *again[1]], leaves, [*grad_y, *grad_after])
    return list(gradients[: len(y)]), list(gradients[len(y) :]), found.v
