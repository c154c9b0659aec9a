"""NDOT: neuronal-dynamics-based online training (Jiang et al., ICML 2024). Follows secondary notes about the paper.

OTTT (:mod:`methods.ottt`) with a decay of the trace that each presynaptic neuron takes from its own membrane ``v``,
after the reset::

    e_l[t] = clamp(v_l[t] / v_l[t-1], -lam, lam)
    a_l[t] = e_l[t] a_l[t-1] + s_l[t]
    grad W_{l+1} = sum_t delta_{l+1}[t] a_l[t]^T

Where ``v_l[t-1]`` is zero there is no ratio; there ``e = lam``, OTTT's decay (our choice). Wherever ``e = lam`` the
rule is OTTT.

The trace belongs to a neuron, not to a weight: on its way to the next weight it passes through the same pooling,
scaling and dropout (with the same mask) as the spikes, as in SpikingJelly's ``OTTTSequential``. For max pooling, which
is not linear, that is the largest trace.

Stored: what autograd saves for ONE time step, and for each neuron layer the membrane and the trace: flat in ``T``.

Needs from the model: as :mod:`methods.ottt`; and stages that are plain sequences, because a module that joins branches
would have to say how it joins their traces.
"""

from __future__ import annotations

from typing import Any

import torch
from spikingjelly.activation_based import layer
from spikingjelly.activation_based.layer.container import StepModeContainer
from torch import Tensor, nn

from harness.contracts import Loss, StagedModel
from methods._traces import NEURONS, WEIGHTS, Traced, leak, untraceable
from methods.ottt import OTTT

TRACE = "presynaptic_trace"
"""Attribute of a tensor of spikes that carries their trace."""
_SEQUENCES = (StagedModel, nn.Sequential)


class NeuronTraces(Traced):
    """``a[t] = e[t] a[t-1] + s[t]`` of every neuron, carried along with the spikes as an attribute of their tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._hooks += [op.register_forward_hook(self._passed) for op in model.modules() if _passes(op)]
        self._traces: dict[nn.Module, Tensor] = {}
        self._membranes: dict[nn.Module, Tensor] = {}

    def trace(self, module: nn.Module, x: Tensor) -> Tensor | None:
        """The trace that came with ``x``; None before the first neuron."""
        return getattr(x, TRACE, None)

    @torch.no_grad()
    def _fired(self, node: Any, args: tuple[Tensor, ...], spikes: Any) -> None:
        v, s = node.v.detach(), spikes.detach()
        if node in self._traces:
            e = decay(v, self._membranes[node], leak(node))
            self._traces[node] = self._traces[node].mul_(e).add_(s)
        else:
            self._traces[node] = s.clone()
        self._membranes[node] = v
        setattr(spikes, TRACE, self._traces[node])

    @torch.no_grad()
    def _passed(self, op: Any, args: tuple[Any, ...], out: Any) -> None:
        trace = getattr(args[0], TRACE, None)
        if trace is not None and out is not args[0]:
            setattr(out, TRACE, op.forward(trace))


class NDOT(OTTT):
    """OTTT with a decay from the membranes."""

    name = "ndot"
    summary = "OTTT whose traces decay with the ratio of the neuron's membranes (after secondary notes)"
    paper = "Jiang et al.: NDOT: neuronal dynamics-based online training for spiking neural networks, ICML 2024"
    traces = NeuronTraces

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or which of the needs above is not met."""
        return untraceable(model, loss) or _uncarried(model)


def decay(v: Tensor, before: Tensor, lam: float) -> Tensor:
    """``e[t]`` of the membranes ``v[t]`` and ``v[t-1]``."""
    ratio = (v / before).clamp_(-lam, lam)
    return ratio.masked_fill_(before == 0, lam)


def _uncarried(model: StagedModel) -> str | None:
    """Which module a trace cannot pass through, or None."""
    if type(model).forward is not StagedModel.forward:
        return f"{type(model).__name__} overrides StagedModel.forward: where traces go is not known"
    spiking = False
    for name, module in model.named_modules():
        label = f"{name} ({type(module).__name__})"
        if type(module) in _SEQUENCES:
            continue
        if isinstance(module, NEURONS):
            spiking = True
        elif type(module) in WEIGHTS:
            spiking = False
        elif isinstance(module, nn.modules.dropout._DropoutNd):
            return f"{label} draws a new mask when it runs for the trace; SpikingJelly's layer.Dropout keeps it"
        elif not _passes(module) and (spiking or any(True for _ in module.children())):
            return f"traces pass through plain sequences of modules without state or parameters; {label} is none"
    return None


def _passes(module: nn.Module) -> bool:
    """Whether a trace runs through a module as spikes do."""
    if isinstance(module, (*NEURONS, StepModeContainer)) or any(True for _ in module.children()):
        return False
    stateless = not any(True for _ in module.parameters()) and not any(True for _ in module.buffers())
    return isinstance(module, layer.Dropout) or (stateless and not hasattr(module, "_memories"))
