"""Stages as checkpointed segments: only their inputs are kept, their internals are recomputed in the backward.

The forward runs without a graph. The backward restores the conditions of the forward (:mod:`methods._entry`), runs the
segment again with a graph, and propagates through that at once. A segment is a whole stage, or a part of one
(:mod:`methods._layout`); it may run in pieces of time, or have its neurons apart (:mod:`methods._pieces`). A part of a
residual stage may read several values, and a value may be read by several parts: it is kept once, and autograd adds up
its gradients.

Memories are put back to their value at entry after the forward too, also by a plain segment: ``T`` is whole in it, so
nothing reads the membranes that it leaves, and they would stay alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from harness.contracts import StagedModel
from methods._entry import Entry, Memories
from methods._layout import Part, stages_as_parts
from methods._nodes import INPUT
from methods._pieces import Keep, neurons_apart, run_in_pieces
from methods._program import Piece
from methods.packing import Kept
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
        keep: stores the segments' inputs, by slot.
        segments: how the stages run; each one a segment where left out.
    """
    found = stages_as_parts(model.stages) if segments is None else segments
    return model.head(run_segments(found, x, keep))


def run_segments(segments: Iterable[Part], x: Tensor, keep: Keep) -> Tensor:
    """The output of consecutive segments, from the start of a stage on."""
    once, values = _Once(keep), dict[int, Any]()
    for part in segments:
        if part.segment.start == 0:
            once, values = _Once(keep), {INPUT: x}
        x = run_part(part, values, once)
        for number in part.drops:
            values.pop(number, None)
        values[part.out] = x
    return x


def run_part(part: Part, values: dict[int, Any], keep: Keep) -> Tensor:
    """The output of a segment.

    Args:
        part: it.
        values: of its stage, by number; takes what it tells besides its output.
        keep: stores its inputs, by slot.
    """
    module, inputs = part.module, [values[number] for number in part.reads]
    if isinstance(module, Piece):
        told = {number: values[number] for number in part.told}
        out = _run(part, inputs, partial(module, told=told), keep)
        values.update(told)
        return out
    return _run(part, inputs, module, keep)


def _run(part: Part, inputs: list[Tensor], call: Callable[..., Tensor], keep: Keep) -> Tensor:
    segment, module = part.segment, part.module
    trains = any(x.requires_grad for x in inputs) or any(p.requires_grad for p in module.parameters())
    if segment.plain:
        memories = Memories(module)
        out = call(*inputs)
        memories.load()
        return out
    if not (trains and torch.is_grad_enabled()) or part.free or isinstance(module, VIEWS):
        return call(*inputs)
    if segment.chunks > 1:
        return run_in_pieces(inputs[0], module, segment.chunks, part.slots[0], keep)
    # The output must require a gradient even where the inputs do not.
    anchor = torch.empty(0, device=inputs[0].device, requires_grad=True)
    return _Segment.apply(anchor, module, call, segment.inner, part.slots, keep, *inputs)


class _Once:
    """What several segments of a stage read is kept once."""

    def __init__(self, keep: Keep) -> None:
        self._keep, self._kept = keep, dict[int, Kept]()

    def __call__(self, slot: int, x: Tensor) -> Kept:
        if slot not in self._kept:
            self._kept[slot] = self._keep(slot, x)
        return self._kept[slot]


class _Segment(torch.autograd.Function):
    """One segment. What it keeps and recomputes lives no longer than it is needed: every byte is measured."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, module: nn.Module, call: Any, inner: int, slots: Any, keep: Keep, *inputs: Tensor
    ) -> Tensor:
        ctx.kept = [keep(slot, x) for slot, x in zip(slots, inputs, strict=True)]
        ctx.module, ctx.call, ctx.inner, ctx.entry = module, call, inner, Entry(module, inputs[0])
        with ctx.entry.autocast():
            out = call(*inputs)
        ctx.entry.settle()
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.kept is None:
            raise RuntimeError("second backward through a checkpointed stage: the first freed what it needs")
        wanted = ctx.needs_input_grad[-len(ctx.kept) :]
        inputs = [kept.restore().requires_grad_(want) for kept, want in zip(ctx.kept, wanted, strict=True)]
        ctx.kept = None
        with ctx.entry.again(), neurons_apart(ctx.module, ctx.inner), torch.enable_grad():
            out = ctx.call(*inputs)
        if out.requires_grad:
            # Through the edge: the recomputed output itself is not needed, unless an operator saved it.
            edge = torch.autograd.graph.get_gradient_edge(out)
            del out
            torch.autograd.backward(edge, grad)
        return (None,) * 6 + tuple(x.grad for x in inputs)
