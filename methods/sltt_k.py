"""SLTT-K: SLTT with gradient at ``K`` random time steps only (Meng et al., ICCV 2023).

For every batch a set ``S`` of ``K`` of the ``T`` steps is drawn, each set equally likely. Steps in ``S`` are those of
:mod:`methods.sltt`, the others only move the membranes on::

    for t:  o[t] = net(x[t]);  if t in S: backward(L(o[t], y) / T);  v_l[t] <- sg(v_l[t])            then one update

As published, the loss is divided by ``T`` and not by ``K``: the expected gradient is ``K / T`` times SLTT's, which the
learning rate has to know. For ``K = T`` it is SLTT.

Stored: as SLTT, and the same peak; with ``K = 1`` a little less where the first step is drawn, because the deeper
layers have no states then. What is spared are the ``T - K`` backwards, not the forwards: the reported loss is that of
all steps.

Needs from the model: as SLTT. The draw is seeded by torch's global generator on the CPU, so that the harness's seed
fixes it, and nothing waits for the device. The generator moves on when the batch is over: within it, dropout draws the
masks that it draws under any other method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from harness.contracts import Loss, Options, StagedModel, StepOutput
from methods._online import Online, Running, learn, watch

REPORTED = 3
"""First draws that the plan holds: a memory phase makes three steps, and a prediction repeats their order."""


class SLTTKOptions(Options):
    """Options of :class:`SLTTK`.

    Attributes:
        k: how many of the ``T`` time steps carry gradient.
    """

    k: int = Field(2, ge=1)


class SLTTK(Online):
    """Backward at K random time steps of each batch, membranes detached between steps, one update."""

    name = "sltt-k"
    summary = "SLTT with gradient at K random time steps of each batch"
    paper = "Meng et al.: Towards memory- and time-efficient backpropagation for training SNNs, ICCV 2023"
    options: ClassVar[type[SLTTKOptions]] = SLTTKOptions

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self._drawn: list[list[int]] = []
        self._replayed: list[list[int]] = []

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        """Switch the model to single-step mode.

        Raises:
            ValueError: fewer than ``k`` time steps.
        """
        steps = example.shape[0]
        if self.opt.k > steps:
            raise ValueError(f"sltt-k: k is {self.opt.k}, but there are T = {steps} time steps; allowed: 1 to {steps}")
        return super().prepare(model, example, loss)

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """See :meth:`Method.step`; the gradients of ``k`` backwards accumulate, ``update`` is called once."""
        running = Running(x.shape[0])
        chosen = self._draw(x.shape[0])
        for t in range(x.shape[0]):
            (learn if t in chosen else watch)(model, x[t], y, loss, running)
        with unset_fake_temporarily():
            torch.rand(())  # so that the next batch draws other steps
        update()
        return running.output()

    def plan(self) -> dict[str, Any]:
        """``k``, and ``steps``: which ones carried gradient in the first batches, in the order drawn."""
        return {"k": self.opt.k, "steps": self._drawn}

    def replay(self, plan: dict[str, Any]) -> None:
        """Take the first draws of a real run: dropout draws from the same generator, but not on fake tensors."""
        self._replayed = [list(steps) for steps in plan["steps"]]

    def _draw(self, steps: int) -> list[int]:
        with unset_fake_temporarily():  # a prediction draws, too
            with torch.random.fork_rng(devices=[]):
                seed = int(torch.randint(2**62, ()))
            chosen = torch.randperm(steps, generator=torch.Generator().manual_seed(seed))[: self.opt.k].tolist()
        if self._replayed:
            return self._replayed.pop(0)
        if len(self._drawn) < REPORTED:
            self._drawn.append(chosen)
        return chosen
