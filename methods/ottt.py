"""OTTT: online training through time (Xiao et al., NeurIPS 2022).

The temporal path of the gradient is moved into a trace of the presynaptic side, which is known forwards in time. With
``delta_l[t] = dL[t]/du_l[t]``, the gradient within step ``t`` (``L[t] = L(o[t], y) / T``, membranes detached)::

    a_l[t] = lam a_l[t-1] + s_l[t]                   lam = 1 - 1/tau
    grad W_{l+1} = sum_t delta_{l+1}[t] a_l[t]^T      the value path and the gradient to s_l[t] use the spike

The input of the first layer has no trace: the gradient of its weight is SLTT's. The read-out's has one. Biases, and the
parameters of a normalisation, are not traced. The weight gradient of the last spiking layer is BPTT's for a soft,
detached reset without batch normalisation; layers before it, and other resets, are biased.

``s_l[t]`` is here what reaches the next weight: after pooling, scaling, dropout. Where that path is linear, as in the
paper, the trace of the path's output is the path's output of the trace (SpikingJelly's ``OTTTSequential``); where it is
not (max pooling), only the former is what the derivation of the rule asks for.

``update=accumulated`` adds the gradients of all steps up to one update; ``update=per_step`` updates after every step,
which is the paper's online update; the traces go on.

Stored: what autograd saves for ONE time step, the membranes, and one trace for each weight layer but the first, which
takes the place of its saved input: flat in ``T``.

Needs from the model: as :mod:`methods.sltt`; LIF or IF neurons that all have the same leak; no parameters but those of
convolutions, linear layers (weight-standardised ones too) and normalisations. It was published without batch
normalisation, with scaled weight standardisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from harness.contracts import Loss, Options, StagedModel, StepOutput
from methods._online import Online, Running, learn
from methods._traces import Traced, leak, neurons, untraceable


class OTTTOptions(Options):
    """Options of :class:`OTTT`.

    Attributes:
        update: ``accumulated``: once a batch; ``per_step``: after every time step.
    """

    update: Literal["accumulated", "per_step"] = "accumulated"


class InputTraces(Traced):
    """``a[t] = lam a[t-1] + x[t]`` of the input of every weight layer that comes after a neuron."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._leak = leak(neurons(model)[0][1])
        self._traces: dict[nn.Module, Tensor] = {}
        self._spiking = False
        self._untraced: set[nn.Module] = set()

    def trace(self, module: nn.Module, x: Tensor) -> Tensor | None:
        """The trace, one step further; None for what runs before the first neuron."""
        if not self._spiking:
            self._untraced.add(module)
        if module in self._untraced:
            return None
        with torch.no_grad():
            if module in self._traces:
                # In place: the step that saved the old value has had its backward.
                self._traces[module].mul_(self._leak).add_(x)
            else:
                self._traces[module] = x.detach().clone()
        return self._traces[module]

    def _fired(self, node: Any, args: tuple[Tensor, ...], spikes: Tensor) -> None:
        self._spiking = True


class OTTT(Online):
    """Backward at every time step, weights learn from presynaptic traces."""

    name = "ottt"
    summary = "online training through time: backward at every step, weight gradients from presynaptic traces"
    paper = "Xiao et al.: Online training through time for spiking neural networks, NeurIPS 2022"
    options: ClassVar[type[OTTTOptions]] = OTTTOptions
    traces: ClassVar[type[Traced]] = InputTraces

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or which of the needs above is not met."""
        return untraceable(model, loss)

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """See :meth:`Method.step`; ``update`` is called once, or ``T`` times."""
        running = Running(x.shape[0])
        with self.traces(model):
            for t in range(x.shape[0]):
                learn(model, x[t], y, loss, running)
                if self.opt.update == "per_step":
                    update()
                    torch.clear_autocast_cache()  # it holds the weights as they were
        if self.opt.update == "accumulated":
            update()
        return running.output()
