"""A segment that runs in pieces of time, with its states carried across them exactly.

The forward is the piecewise one in both runs. The backward first runs the pieces once more without a graph for the
states between them, then takes the pieces from the last to the first: each runs with a graph from its state at entry
and passes the gradient of that state on to the piece before it::

    (g_x[a:b], g_v[a]) = backward of piece a:b from (g[a:b], g_v[b])

The kept input belongs to the segment alone: the gradient of a piece takes its place, so input and gradient together
need one tensor. Stored while it runs backward: that tensor, the states between pieces, and what autograd saves for one
piece.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from methods._entry import Entry
from methods._layout import neurons
from methods.packing import RAW, Kept, pack

Keep = Callable[[int, Tensor], Kept]
"""Stores the input of the segment with the given index."""
States = list[dict[str, Any]]


def run_in_pieces(x: Tensor, module: nn.Module, chunks: int, index: int, keep: Keep) -> Tensor:
    """``module(x)`` as a segment of ``chunks`` pieces of time; fewer where ``T`` is smaller."""
    # The output must require a gradient even where the input does not.
    anchor = torch.empty(0, device=x.device, requires_grad=True)
    return _Pieces.apply(x, anchor, module, chunks, index, keep)


@contextlib.contextmanager
def neurons_apart(module: nn.Module, chunks: int) -> Iterator[None]:
    """While active, every neuron inside ``module`` is a segment in ``chunks`` pieces of time."""
    nodes = neurons(module) if chunks else []
    for node in nodes:
        vars(node)["forward"] = partial(_apart, node, chunks)
    try:
        yield
    finally:
        for node in nodes:
            vars(node).pop("forward", None)


def _apart(node: nn.Module, chunks: int, x: Tensor) -> Tensor:
    del vars(node)["forward"]
    out = run_in_pieces(x, node, chunks, 0, _raw)
    vars(node)["forward"] = _once
    return out


def _once(*_: Any) -> Tensor:
    raise RuntimeError("a neuron that runs twice in a stage cannot be a segment: its state would be lost in between")


def _raw(index: int, x: Tensor) -> Kept:
    return pack(x, RAW)


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, module: nn.Module, chunks: int, index: int, keep: Keep) -> Tensor:
        kept = keep(index, x)
        ctx.kept = kept.owned() if ctx.needs_input_grad[0] else kept
        ctx.module, ctx.entry, ctx.bounds = module, Entry(module, x), _bounds(x.shape[0], chunks)
        with ctx.entry.autocast():
            out = _joined(module, x, ctx.bounds)
        ctx.entry.settle()
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.kept is None:
            raise RuntimeError("second backward through a checkpointed stage: the first freed what it needs")
        x, ctx.kept = ctx.kept.restore(), None
        wanted, carry = ctx.needs_input_grad[0], list[Tensor | None]()
        with ctx.entry.again():
            nodes = [m for m in ctx.module.modules() if isinstance(m, base.MemoryModule)]
            starts = _states_between(ctx.module, nodes, x, ctx.bounds)
            for a, b in reversed(ctx.bounds):
                piece = x[a:b].detach().requires_grad_(wanted)
                carry = _piece_backward(ctx.module, nodes, starts.pop(), piece, grad[a:b], carry)
                if wanted:
                    assert piece.grad is not None
                    x[a:b] = piece.grad
        return x if wanted else None, None, None, None, None, None


def _joined(module: nn.Module, x: Tensor, bounds: list[tuple[int, int]]) -> Tensor:
    """The output, written piece by piece."""
    first = module(x[: bounds[0][1]])
    out = first.new_empty((x.shape[0], *first.shape[1:]))
    out[: bounds[0][1]] = first
    del first
    for a, b in bounds[1:]:
        out[a:b] = module(x[a:b])
    return out


def _states_between(module: nn.Module, nodes: list[Any], x: Tensor, bounds: list[tuple[int, int]]) -> list[States]:
    """States at the start of every piece."""
    found = [_states(nodes)]
    for a, b in bounds[:-1]:
        module(x[a:b])
        found.append(_states(nodes))
    return found


def _piece_backward(
    module: nn.Module, nodes: list[Any], start: States, x: Tensor, grad: Tensor, carry: list[Tensor | None]
) -> list[Tensor | None]:
    """Gradient of one piece into ``x.grad`` and the parameters.

    Args:
        module: the segment.
        nodes: its stateful modules.
        start: their states at the start of the piece.
        x: the piece of the input, a leaf.
        grad: of the piece of the output.
        carry: gradients of the states at the end of the piece; empty for the last piece.

    Returns:
        Gradients of the states at its start.
    """
    leaves = [_leaf(value) for states in start for value in states.values()]
    values = iter(leaves)
    for node in nodes:
        node._memories.update({name: next(values) for name in node._memories})
    with torch.enable_grad():
        out = module(x)
    ends = [value for states in _states(nodes) for value in states.values()]
    pairs = [(out, grad)] + [(end, g) for end, g in zip(ends, carry, strict=False) if g is not None]
    pairs = [(tensor, g) for tensor, g in pairs if tensor.requires_grad]
    # Through edges: the recomputed outputs themselves are not needed, unless an operator saved them.
    edges = [torch.autograd.graph.get_gradient_edge(tensor) for tensor, _ in pairs]
    grads = [g for _, g in pairs]
    for node, states in zip(nodes, start, strict=True):
        node._memories.update(states)
    del out, ends, pairs
    if edges:
        torch.autograd.backward(edges, grads)
    return [leaf.grad if isinstance(leaf, Tensor) else None for leaf in leaves]


def _states(nodes: list[Any]) -> States:
    return [dict(node._memories) for node in nodes]


def _leaf(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().requires_grad_(value.is_floating_point())


def _bounds(steps: int, chunks: int) -> list[tuple[int, int]]:
    """Start and end of up to ``chunks`` pieces of ``steps`` time steps, as even as possible."""
    count = min(chunks, steps)
    ends = [steps * piece // count for piece in range(count + 1)]
    return list(itertools.pairwise(ends))
