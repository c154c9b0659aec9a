"""Local learning: a network in parts, each with a loss of its own, and no gradient between them.

Part ``k`` is a run of layers ``S_k`` and a tail that turns its output into logits: the model's head for the last part,
an auxiliary network for the others. The gradient ends at a part's input, ``h <- sg(h)``, so what part ``k`` learns does
not depend on what comes after it, and only one part's graph is alive at a time.

A *layer* is a stage that has parameters, with the stages without (pooling) that follow it.

Auxiliary networks are submodules of the prepared model, under a name of their own: their parameters are in the
optimizer and in the ledger, and :func:`dismantle` takes them away again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from spikingjelly.activation_based import base, functional
from torch import Tensor, nn
from torch.nn import functional as F

from harness.contracts import Loss, StagedModel, StepOutput
from methods._online import Running, detach_states, unsteppable
from methods._segment import unsegmentable

AUXILIARIES = "local_auxiliaries"
"""The submodule of a prepared model that holds the auxiliary networks."""


@dataclass(frozen=True)
class Part:
    """One subnetwork.

    Args:
        body: its layers.
        tail: turns the body's output into logits ``[N, K]`` (``[T, N, K]`` in multi-step mode).
        last: the tail is the model's head.
    """

    body: nn.Sequential
    tail: nn.Module
    last: bool


class Classifier(nn.Module, base.StepModule):
    """A linear read-out on the average-pooled output of a layer.

    Args:
        sample: shape of one sample of the layer's output at one step, channels first, e.g. ``(C, H, W)``.
        classes: ``K``.
        features: at most so many inputs of the read-out, but at least one a channel: ``1`` is global average pooling,
            None is no pooling.
        step_mode: ``"s"`` for ``[N, ...] -> [N, K]``, ``"m"`` for ``[T, N, ...] -> [T, N, K]``.
    """

    def __init__(self, sample: Sequence[int], classes: int, features: int | None = 1, step_mode: str = "s") -> None:
        super().__init__()
        channels, *space = sample
        self.grid = _grid(channels, space, features)
        self.linear = nn.Linear(channels * torch.Size(self.grid).numel(), classes)
        self.step_mode = step_mode

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``."""
        lead = x.shape[: 1 if self.step_mode == "s" else 2]
        if self.grid != x.shape[len(lead) + 1 :]:
            x = _pool(x.flatten(0, len(lead) - 1), self.grid).unflatten(0, lead)
        return self.linear(x.flatten(len(lead)))


def unsupported(model: StagedModel, loss: Loss, *, online: bool) -> str | None:
    """Why ``model`` cannot be trained part by part (``online``: and step by step), or None."""
    if hasattr(model, AUXILIARIES):
        return f"the model has a submodule {AUXILIARIES} already"
    if not layers_of(model):
        return "no stage of the model has parameters"
    return unsegmentable(model) or (unsteppable(model, loss) if online else None)


def layers_of(model: StagedModel) -> list[range]:
    """The stages of each layer, as ranges of their numbers; leading stages without parameters join the first layer."""
    starts = [n for n, stage in enumerate(model.stages) if any(True for _ in stage.parameters())]
    if not starts:
        return []
    return [range(a, b) for a, b in pairwise([0, *starts[1:], len(model.stages)])]


def partition(layers: int, parts: int) -> list[range]:
    """``layers`` numbers in ``parts`` consecutive runs whose lengths differ by at most one, longer ones first.

    Raises:
        ValueError: more parts than layers.
    """
    if parts > layers:
        raise ValueError(f"cannot cut {layers} layers into {parts} parts")
    size, longer = divmod(layers, parts)
    cuts = [n * size + min(n, longer) for n in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(cuts)]


def stages_of(model: StagedModel, layers: Sequence[range], run: range) -> nn.Sequential:
    """The stages of a run of layers, as one module that shares them with the model."""
    return nn.Sequential(*list(model.stages)[layers[run[0]].start : layers[run[-1]].stop])


def assemble(model: StagedModel, runs: Iterable[range], auxiliaries: Iterable[nn.Module]) -> list[Part]:
    """Give the model its auxiliary networks.

    Args:
        model: gets the submodule :data:`AUXILIARIES`.
        runs: the layers of each part.
        auxiliaries: one tail for every part but the last, which ends in the model's head.
    """
    layers = layers_of(model)
    tails = list(auxiliaries)
    model.add_module(AUXILIARIES, nn.ModuleList(tails))
    bodies = [stages_of(model, layers, run) for run in runs]
    return [Part(body, tail, last=tail is model.head) for body, tail in zip(bodies, [*tails, model.head], strict=True)]


def dismantle(model: StagedModel) -> StagedModel:
    """The model without auxiliary networks, in multi-step mode."""
    if hasattr(model, AUXILIARIES):
        delattr(model, AUXILIARIES)
    functional.set_step_mode(model, "m")
    return model


def learn_part(
    part: Part, h: Tensor, y: Tensor, share: Callable[[Tensor, Tensor], Tensor], loss: Loss
) -> tuple[Tensor, Tensor, Tensor]:
    """Forward and backward of one part.

    Args:
        part: the subnetwork.
        h: its input, without a graph.
        y: targets ``[N]``.
        share: the part's loss of ``(logits, y)``.
        loss: runs the backward.

    Returns:
        The input of the next part, the loss and the logits, all detached.
    """
    out = part.body(h)
    logits = part.tail(out)
    value = share(logits, y)
    if value.requires_grad:  # not where all that the part has is frozen
        loss.backward(value)
    return out.detach(), value.detach(), logits.detach()


def learn_steps(
    model: StagedModel,
    parts: Sequence[Part],
    x: Tensor,
    y: Tensor,
    loss: Loss,
    auxiliary: Loss,
    update: Callable[[], None],
    *,
    per_step: bool = False,
) -> StepOutput:
    """``for t: for k: h = sg(h); S_k; tail; L[t]/T backward``; no state has a graph after a time step.

    Args:
        model: prepared, in single-step mode.
        parts: its parts.
        x: ``[T, N, ...]``.
        y: ``[N]``.
        loss: of the last part.
        auxiliary: of the others.
        update: called once, or after every time step.
        per_step: after every time step.
    """
    running = Running(x.shape[0])
    for h in x.unbind(0):
        for part in parts:
            share = partial((loss if part.last else auxiliary).at_step, steps=running.steps)
            h, value, logits = learn_part(part, h, y, share, loss)
        running.add(value, logits)
        del h, value, logits  # or they would be alive during the next step
        detach_states(model)
        if per_step:
            update()
            torch.clear_autocast_cache()  # it holds the weights as they were
    if not per_step:
        update()
    return running.output()


def learn_sequence(
    parts: Sequence[Part], x: Tensor, y: Tensor, loss: Loss, auxiliary: Loss, update: Callable[[], None]
) -> StepOutput:
    """``for k: h = sg(h); S_k over all T; tail; L backward``; arguments as of :func:`learn_steps`, multi-step mode."""
    h = x
    for part in parts:
        h, value, logits = learn_part(part, h, y, loss if part.last else auxiliary, loss)
    update()
    return StepOutput(value, logits.mean(0))


def read_out(
    model: StagedModel, sample: Sequence[int], classes: int, step_mode: str, features: int | None = 1
) -> Classifier:
    """A :class:`Classifier` with the dtype and on the device of the model's parameters."""
    like = next(model.parameters())
    with torch.device(like.device):
        new = Classifier(sample, classes, features, step_mode)
    for name, parameter in list(new.linear.named_parameters()):
        setattr(new.linear, name, nn.Parameter(parameter.detach().to(like.dtype)))
    return new


def _grid(channels: int, space: Sequence[int], features: int | None) -> tuple[int, ...]:
    """The largest grid, as square as ``space`` allows, with at most ``features`` inputs of a read-out."""
    grid = tuple(space)
    while features is not None and channels * torch.Size(grid).numel() > features and max(grid, default=1) > 1:
        largest = max(grid)
        grid = tuple(min(size, largest - 1) for size in grid)
    return grid


def _pool(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    if all(size == 1 for size in grid):
        return x.flatten(2).mean(-1).reshape(*x.shape[:2], *grid)  # unlike adaptive pooling, it saves nothing
    pools: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
    return pools[len(grid)](x, grid)
