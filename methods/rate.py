"""Rate-based backpropagation (Yu et al., NeurIPS 2024).

What matters in a sequence is taken to be its mean. The network runs without a graph; each neuron layer ``l`` keeps its
mean spike ``r_l`` and an eligibility ``g_l``. Then one graph like an ANN's is built on rates, and the gradient of the
loss with respect to the logits, summed over time, goes back through it once::

    spiking pass   for t:  e_l[t] = 1 + lam e_l[t-1],  e_l[0] = 1  (soft, detached reset)
                           r_l = mean_t s_l[t]        g_l = mean_t e_l[t] psi_l[t]
    rate pass      r_0 = mean_t x[t];  c_l = W_l r_{l-1} + b_l;  value of r_l as recorded,  dr_l/dc_l := g_l
    backward       dL/dr_out = sum_t dL/do[t]

:mod:`methods._rates` has the equations for the other resets, and for batch normalisation. One layer with a static
input and a loss on the mean logits has BPTT's gradient; otherwise it is biased: what spikes do at the right time, not
often enough, is not seen. Max pooling, which does not commute with the mean, is applied to the rates, as published.
The authors' scripts divide the gradient by ``T`` besides; that is left to the learning rate.

``mode=multi_step`` runs the spiking pass layer by layer over all ``T``; ``mode=single_step`` step by step, so that no
tensor has a time dimension.

Stored: ``r_l``, ``g_l`` and the rate graph: flat in ``T``. While it runs, ``multi_step`` holds one layer's sequences.

Needs from the model: LIF or IF neurons with a surrogate whose derivative can be called; no other states but dropout
masks; convolutions, linear layers (weight-standardised ones too) and batch normalisation. ``multi_step`` takes every
normalisation mode; ``single_step`` never sees a whole sequence, so not statistics over ``T x N``. Running statistics
are those of the spiking pass, and so BPTT's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from harness.contracts import Loss, Method, Options, StagedModel, StepOutput
from methods._online import SINGLE_STEP_NORMS, Running, uncached_autocast
from methods._rates import Rates, unrated


class RateOptions(Options):
    """Options of :class:`Rate`.

    Attributes:
        mode: order of the spiking pass: ``multi_step``: layer by layer; ``single_step``: time step by time step.
    """

    mode: Literal["multi_step", "single_step"] = "multi_step"


class Rate(Method):
    """Spikes without a graph, one backward on rates."""

    name = "rate"
    summary = "rate-based backpropagation: spikes without a graph, one backward on mean rates"
    paper = "Yu et al.: Advancing training efficiency of deep SNNs through rate-based backpropagation, NeurIPS 2024"
    gradient = "biased"
    flat_in_time = True
    options: ClassVar[type[RateOptions]] = RateOptions

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or which of the needs above is not met."""
        if self.opt.mode == "single_step" and model.normalisation not in SINGLE_STEP_NORMS:
            return (
                f"mode single_step runs one time step at a time, so it needs normalisation per_step, "
                f"weight_standardised or none; the model's is {model.normalisation}"
            )
        return unrated(model)

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """See :meth:`Method.step`."""
        target = _Target(loss, y, x.shape[0])
        with Rates(model) as rates:
            if self.opt.mode == "multi_step":
                functional.set_step_mode(model, "m")
                for logits in _spikes(model, x):
                    target.add(logits)
            functional.set_step_mode(model, "s")
            if self.opt.mode == "single_step":
                for frame in x:
                    target.add(_spikes(model, frame))
            out, gradient = target.output()
            with rates.averaged():
                logits = model(x.mean(0))
        loss.backward((logits.to(gradient.dtype) * gradient).sum())
        update()
        return out

    def finish(self, model: StagedModel) -> nn.Module:
        """The model in multi-step mode."""
        functional.set_step_mode(model, "m")
        return model


def _spikes(model: nn.Module, x: Tensor) -> Tensor:
    """Logits of the spiking pass, float32 or wider: ``dL/do`` is not scaled and would underflow in half precision."""
    with torch.no_grad(), uncached_autocast(x.device):
        logits = model(x)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _Target:
    """The loss of the spiking pass, and ``sum_t dL/do[t]``, without keeping the logits of all steps.

    Args:
        loss: the objective; of either kind.
        y: ``[N]``.
        steps: ``T``.
    """

    def __init__(self, loss: Loss, y: Tensor, steps: int) -> None:
        self._loss, self._y = loss, y
        self._running = Running(steps)
        self._gradient: Tensor | None = None

    def add(self, logits: Tensor) -> None:
        """Count one step's logits ``[N, K]``, which have no graph."""
        if self._loss.kind == "time_mean":
            self._running.add(logits.new_zeros(()), logits)
            return
        logits = logits.detach().requires_grad_()
        share = self._loss.at_step(logits, self._y, self._running.steps)
        gradient = _gradient(share, logits)
        self._running.add(share, logits)
        self._gradient = gradient if self._gradient is None else self._gradient + gradient

    def output(self) -> tuple[StepOutput, Tensor]:
        """What the training step returns, and the gradient ``[N, K]``."""
        out = self._running.output()
        if self._loss.kind == "time_mean":
            mean = out.logits.detach().requires_grad_()
            value = self._loss(mean.unsqueeze(0), self._y)
            return StepOutput(value.detach(), out.logits), _gradient(value, mean)
        assert self._gradient is not None
        return out, self._gradient


def _gradient(value: Tensor, logits: Tensor) -> Tensor:
    with torch.autocast(value.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(value, logits)
    return gradient
