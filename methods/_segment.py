"""Stages as checkpointed segments: only their inputs are kept, their internals are recomputed in the backward.

The forward runs without a graph. The backward restores the conditions of the forward (:mod:`methods._entry`), runs the
segment again with a graph, and propagates through that at once. A segment is a whole stage, or a part of one
(:mod:`methods._layout`); it may run in pieces of time, or have its neurons apart (:mod:`methods._pieces`).

Memories are put back to their value at entry after the forward too, also by a plain segment: ``T`` is whole in it, so
nothing reads the membranes that it leaves, and they would stay alive.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from harness.contracts import StagedModel
from methods._entry import Entry, Memories
from methods._layout import Part, parts, whole
from methods._pieces import Keep, neurons_apart, run_in_pieces
from methods.widths import VIEWS


def unsegmentable(model: StagedModel) -> str | None:
    """Why the stages of ``model`` cannot be recomputed one by one, or None."""
    if type(model).forward is not StagedModel.forward:
        return f"{type(model).__name__} overrides StagedModel.forward: its stages do not describe its forward"
    owner: dict[nn.Module, int] = {}
    for index, stage in enumerate([*model.stages, model.head]):
        for module in stage.modules():
            if isinstance(module, base.MemoryModule) and owner.setdefault(module, index) != index:
                return f"stages {owner[module]} and {index} share a {type(module).__name__} and with it its state"
    return None


def segmented_forward(model: StagedModel, x: Tensor, keep: Keep, segments: Iterable[Part] | None = None) -> Tensor:
    """Logits ``[T, N, K]`` of ``x [T, N, ...]``; the head runs as it is.

    Args:
        model: the network.
        x: its input.
        keep: stores the segments' inputs.
        segments: how the stages run; each one a segment where left out.
    """
    found = parts(model, whole(model.stages)) if segments is None else segments
    return model.head(run_segments(found, x, keep))


def run_segments(segments: Iterable[Part], x: Tensor, keep: Keep, first: int = 0) -> Tensor:
    """The output of consecutive segments; ``keep`` knows them by their position, counted from ``first``."""
    for index, (segment, module) in enumerate(segments, first):
        trains = torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in module.parameters()))
        if segment.plain:
            memories = Memories(module)
            x = module(x)
            memories.load()
        elif not trains or isinstance(module, VIEWS):
            x = module(x)
        elif segment.chunks > 1:
            x = run_in_pieces(x, module, segment.chunks, index, keep)
        else:
            # The output must require a gradient even where the input does not.
            anchor = torch.empty(0, device=x.device, requires_grad=True)
            x = _Segment.apply(x, anchor, module, segment.inner, index, keep)
    return x


class _Segment(torch.autograd.Function):
    """One segment. What it keeps and recomputes lives no longer than it is needed: every byte is measured."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, module: nn.Module, inner: int, index: int, keep: Keep) -> Tensor:
        ctx.kept, ctx.module, ctx.inner, ctx.entry = keep(index, x), module, inner, Entry(module, x)
        with ctx.entry.autocast():
            out = module(x)
        ctx.entry.settle()
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.kept is None:
            raise RuntimeError("second backward through a checkpointed stage: the first freed what it needs")
        x, ctx.kept = ctx.kept.restore().requires_grad_(ctx.needs_input_grad[0]), None
        with ctx.entry.again(), neurons_apart(ctx.module, ctx.inner), torch.enable_grad():
            out = ctx.module(x)
        if out.requires_grad:
            # Through the edge: the recomputed output itself is not needed, unless an operator saved it.
            edge = torch.autograd.graph.get_gradient_edge(out)
            del out
            torch.autograd.backward(edge, grad)
        return x.grad, None, None, None, None, None
