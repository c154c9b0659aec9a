"""What methods share that run one time step at a time: single-step mode, and a step with or without gradient.

After a step with gradient the states are detached, so that the graph never spans two steps::

    o[t] = net(x[t]);  backward(L(o[t], y) / T);  v[t] <- sg(v[t])
"""

from __future__ import annotations

from typing import Any

import torch
from spikingjelly.activation_based import base, functional
from torch import Tensor, nn

from harness.contracts import Loss, Method, StagedModel, StepOutput

SINGLE_STEP_NORMS = ("per_step", "weight_standardised", "none")
"""Normalisation modes that one time step is enough for."""


class Online(Method):
    """A method whose outermost loop is over time: biased, and flat in ``T``."""

    gradient = "biased"
    flat_in_time = True

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or why the model and the loss cannot be taken one time step at a time."""
        return unsteppable(model, loss)

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        """Switch the model to single-step mode."""
        functional.set_step_mode(model, "s")
        return model

    def finish(self, model: StagedModel) -> nn.Module:
        """The model in multi-step mode."""
        functional.set_step_mode(model, "m")
        return model


class Running:
    """Sum of the loss's shares and mean of the logits, over the steps so far; as many bytes at every step.

    Args:
        steps: ``T``.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._loss: Tensor | None = None
        self._logits: Tensor | None = None

    def add(self, share: Tensor, logits: Tensor) -> None:
        """Count one step.

        Args:
            share: the step's share of the loss, a scalar.
            logits: ``[N, K]``.
        """
        share, logits = share.detach(), logits.detach() / self.steps
        # A copy, because from the second step on there is a sum beside the share.
        self._loss = share.clone() if self._loss is None else self._loss + share
        self._logits = logits if self._logits is None else self._logits + logits

    def output(self) -> StepOutput:
        """What the training step returns."""
        assert self._loss is not None
        assert self._logits is not None
        return StepOutput(self._loss, self._logits)


def learn(model: nn.Module, x: Tensor, y: Tensor, loss: Loss, running: Running) -> None:
    """Forward and backward of one time step; afterwards no state has a graph.

    Args:
        model: in single-step mode.
        x: ``[N, ...]``.
        y: ``[N]``.
        loss: per step.
        running: counts the step.
    """
    logits = model(x)
    share = loss.at_step(logits, y, running.steps)
    running.add(share, logits)
    loss.backward(share)
    detach_states(model)


def watch(model: nn.Module, x: Tensor, y: Tensor, loss: Loss, running: Running) -> None:
    """Forward of one time step without gradient; arguments as of :func:`learn`."""
    with torch.no_grad(), uncached_autocast(x.device):
        logits = model(x)
        running.add(loss.at_step(logits, y, running.steps), logits)


def uncached_autocast(device: torch.device) -> torch.autocast:
    """Autocast as it is, without its cache of cast weights: one cast without a graph would lose its gradient later."""
    kind = device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)


def unsteppable(model: StagedModel, loss: Loss) -> str | None:
    """Why the model and the loss cannot be taken one time step at a time, or None."""
    if loss.kind != "per_step":
        return f"needs a per_step loss, which has a share for every time step; this one is {loss.kind}"
    if model.normalisation not in SINGLE_STEP_NORMS:
        return (
            f"runs one time step at a time, so it needs normalisation per_step, weight_standardised or none; "
            f"the model's is {model.normalisation}"
        )
    return not_single_step(model)


def not_single_step(model: nn.Module) -> str | None:
    """Which module cannot run in single-step mode, and why, or None."""
    seen: set[nn.Module] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        label = f"{name} ({type(module).__name__})"
        if isinstance(module, base.StepModule) and "s" not in module.supported_step_mode():
            return f"runs one time step at a time, but {label} has no single-step mode"
        if isinstance(module, base.MemoryModule) and module in seen:
            return f"runs one time step at a time, but {label} runs twice a step and would mix two sequences' states"
        seen.add(module)
    return None


def detach_states(model: nn.Module) -> None:
    """As SpikingJelly's ``detach_net``, but for lists of tensors (``layer.Delay``) and for views too."""
    for module in model.modules():
        if isinstance(module, base.MemoryModule):
            _detach_memories(module)


def _detach_memories(module: base.MemoryModule) -> None:
    for name, value in module.named_memories():
        setattr(module, name, _detached(value))
    if isinstance(getattr(module, "v_seq", None), Tensor):
        module.v_seq = module.v_seq.detach()


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return type(value)(map(_detached, value)) if isinstance(value, (list, tuple)) else value
