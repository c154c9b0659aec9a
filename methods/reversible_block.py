"""Reversible blocks (RevSNN, AAAI 2024): activations of a coupling are computed from its output, backwards.

A reversible stage splits its input by channel over the whole sequence and inverts by subtraction::

    Y1 = X1 + F(X2);  Y2 = X2 + G(Y1)             X2 = Y2 - G(Y1);  X1 = Y1 - F(X2)

The backward goes through the stages from the last. For each it runs ``G`` and then ``F`` once more, with a graph:
their values give the input back, the graph gives the gradient::

    gX2' = gY2;  gY1' = gY1 + (dG/dY1)^T gY2;     gX1 = gY1';  gX2 = gY2 + (dF/dX2)^T gY1'

Stored: the output of each run of neighbouring reversible stages, whatever its depth, and, while a block runs
backward, what autograd saves for one ``F`` or ``G``. Other stages (stem, changes of resolution) are as in BPTT. About
one more forward of time.

The second run of ``F`` and ``G`` sees what the first saw (:mod:`methods._entry`): normalisation statistics are
updated exactly once (published code: twice), dropout masks are the same. The subtraction loses the last bits of
the input, and a membrane exactly at its threshold may then decide otherwise. That takes a stream of whole numbers:
spikes that enter a block directly. Behind a normalised convolution, as published, the error is that of rounding. The
stream is kept in float32 inside autocast, as published; half-precision models are refused.

Needs from the model: stages that offer ``reversible_coupling() -> (F, G, dim)`` with the equations above as their
forward and ``dim`` the split dimension (``suites/models/revnet.py`` has them), and no state shared between stages.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from itertools import groupby
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from harness.contracts import Loss, Method, StagedModel, StepOutput
from methods._entry import Entry
from methods._segment import unsegmentable


class ReversibleBlock(Method):
    """Keep the last output of every run of reversible stages."""

    name = "reversible-block"
    summary = "reversible blocks: each run of couplings keeps its last output, the backward subtracts its way back"
    paper = "Zhang, Zhang: Memory-efficient reversible spiking neural networks, AAAI 2024"
    gradient = "exact"

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._plan: dict[str, Any] = {}

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or why no stage of the model can be inverted."""
        if not any(map(_is_reversible, model.stages)):
            return "no stage of the model is a reversible coupling Y1 = X1 + F(X2), Y2 = X2 + G(Y1)"
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters()):
            return "the inverse subtracts, which needs float32; the model's parameters have half precision"
        reasons = (f"stage {i}: {reason}" for i, s in enumerate(model.stages) if (reason := _unsplittable(s)))
        return unsegmentable(model) or next(reasons, None)

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        """Nothing is rewritten: state_dict keys stay as they are."""
        lengths = [len(list(run)) for reversible, run in groupby(model.stages, _is_reversible) if reversible]
        self._plan = {"stages": len(model.stages), "reversible_runs": lengths}
        return model

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """See :meth:`Method.step`."""
        hidden = x
        for reversible, run in groupby(model.stages, _is_reversible):
            stages = list(run)
            hidden = _through(stages, hidden) if reversible else reduce(lambda h, stage: stage(h), stages, hidden)
        logits = model.head(hidden)
        del hidden
        value = loss(logits, y)
        loss.backward(value)
        update()
        return StepOutput(value.detach(), logits.detach().mean(0))

    def plan(self) -> dict[str, Any]:
        """``stages`` of the model, and ``reversible_runs``: how many neighbours each run of reversible ones has."""
        return self._plan


def _is_reversible(stage: nn.Module) -> bool:
    return callable(getattr(stage, "reversible_coupling", None))


def _unsplittable(stage: Any) -> str | None:
    """Why a reversible stage's two functions cannot run a second time one by one, or None."""
    if not _is_reversible(stage):
        return None
    f, g, _ = stage.reversible_coupling()
    inside, of_g = {*f.parameters(), *g.parameters()}, set(g.modules())
    outside = [name for name, parameter in stage.named_parameters() if parameter not in inside]
    if outside:
        return f"{outside[0]} belongs to neither F nor G: the forward is more than their coupling"
    shared = [m for m in f.modules() if isinstance(m, base.MemoryModule) and m in of_g]
    return f"F and G share a {type(shared[0]).__name__} and with it its state" if shared else None


def _through(stages: list[Any], x: Tensor) -> Tensor:
    """Output of neighbouring reversible stages."""
    couplings = [stage.reversible_coupling() for stage in stages]
    if torch.is_autocast_enabled(x.device.type):
        x = x.float()
    # The output must require a gradient even where the input does not.
    anchor = torch.empty(0, device=x.device, requires_grad=True)
    return _Run.apply(x, anchor, couplings)


class _Run(torch.autograd.Function):
    """Neighbouring couplings. What is kept and recomputed lives no longer than it is needed: every byte is measured."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, couplings: list[tuple[nn.Module, nn.Module, int]]) -> Tensor:
        ctx.couplings, ctx.entries = couplings, []
        one, two = x.chunk(2, couplings[0][2])
        for f, g, _ in couplings:
            one = one + _first(f, two, ctx.entries)
            two = two + _first(g, one, ctx.entries)
        out = torch.cat([one, two], couplings[-1][2])
        ctx.kept, ctx.version = out.detach(), out._version
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, ctx.kept = ctx.kept, None
        if kept is None:
            raise RuntimeError("second backward through reversible stages: the first used up what it had kept")
        if kept._version != ctx.version:
            raise RuntimeError("the kept output of a reversible stage was modified in place")
        dim = ctx.couplings[-1][2]
        halves, grads = list(kept.chunk(2, dim)), list(grad.chunk(2, dim))
        del kept, grad
        for f, g, _ in reversed(ctx.couplings):
            _again(g, ctx.entries.pop(), halves, grads, source=0)
            _again(f, ctx.entries.pop(), halves, grads, source=1)
        return torch.cat(grads, ctx.couplings[0][2]) if ctx.needs_input_grad[0] else None, None, None


def _first(function: nn.Module, x: Tensor, entries: list[Entry]) -> Tensor:
    """A residual without a graph; what its second run depends on is appended to ``entries``."""
    entry = Entry(function, x)
    entries.append(entry)
    with entry.autocast():
        out: Tensor = function(x)
    entry.settle()
    return out


def _again(function: nn.Module, entry: Entry, halves: list[Tensor], grads: list[Tensor], source: int) -> None:
    """Undo ``other half += function(half[source])``, and add the function's part to the gradient of its source.

    Gradients of the function's parameters accumulate.
    """
    target = 1 - source
    x = halves[source].detach().requires_grad_()
    with entry.again(), torch.enable_grad():
        out = function(x)
    halves[target] = halves[target] - out.detach()
    if out.requires_grad:
        # Through the edge: the recomputed output itself is not needed, unless an operator saved it.
        edge, grad = torch.autograd.graph.get_gradient_edge(out), grads[target].to(out.dtype)
        del out
        torch.autograd.backward(edge, grad)
    if x.grad is not None:
        grads[source] = grads[source] + x.grad
