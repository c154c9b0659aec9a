"""DECOLLE: deep continuous local learning (Kaiser, Mostafa, Neftci, Frontiers in Neuroscience 2020).

Every layer has a fixed random read-out ``G_l`` and learns from a smooth-L1 loss to the one-hot target at every step. In
its neuron, what a weight did is known forwards: the input is filtered twice before the weight, and a spike acts back
through a refractory term instead of a reset::

    Q[t] = beta Q[t-1] + (1 - beta) s_{l-1}[t]         P[t] = alpha P[t-1] + g Q[t]           double synaptic trace
    U[t] = W P[t] - rho R[t],  s_l[t] = H(U[t] - Vth)  R[t+1] = gamma R[t] + s_l[t]
    for t: for l:  backward(smooth_l1(G_l s_l[t], y) / T),  P, Q, R and s_{l-1} detached            so dU[t]/dW = P[t]

``alpha`` and ``g`` are those of the model's own LIF neuron (``1 - 1/tau``, and ``1/tau``, or 1 without ``decay_input``;
IF: both 1). With ``beta = 0``, ``gamma = alpha`` and ``rho = alpha Vth`` this neuron is LIF with soft reset.

A normalisation after the weight stays where it is. The last layer has no read-out of its own: it learns from the
model's head and the cell's objective, and so does the head. The published regularisers of ``U`` are left out.

Stored: what autograd saves for ONE layer at ONE time step, and the states ``P``, ``Q``, ``R``: flat in ``T``. The
read-outs are parameters without gradient.

Needs from the model: as :mod:`methods.ottt`, stages that describe its forward, and neurons in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from spikingjelly.activation_based import base, neuron
from torch import Tensor, nn
from torch.nn import functional as F

from harness.contracts import Loss, Options, StagedModel, StepOutput
from methods._layerwise import LayerWise
from methods._local import learn_steps, read_out
from methods._traces import NEURONS, WEIGHTS, leak, untraceable_stages

READ_OUT_AMPLITUDE = 0.5
"""Weights and biases of a read-out are uniform in +- this / sqrt(inputs): ``lc_ampl`` of the authors' code."""


class DECOLLEOptions(Options):
    """Options of :class:`DECOLLE`; the defaults are those of the authors' code.

    Attributes:
        beta: decay of the synaptic trace ``Q``.
        gamma: decay of the refractory term ``R``.
        rho: its weight.
    """

    beta: float = Field(0.85, ge=0, lt=1)
    gamma: float = Field(0.65, ge=0, lt=1)
    rho: float = Field(1.0, ge=0)


class SynapticTrace(base.MemoryModule):
    """``P`` of a weight layer's input; ``[N, ...]``, or ``[T, N, ...]`` in multi-step mode, to the same shape.

    Args:
        alpha: decay of ``P``.
        gain: ``g``.
        beta: decay of ``Q``.
    """

    def __init__(self, alpha: float, gain: float, beta: float) -> None:
        super().__init__()
        self.alpha, self.gain, self.beta = alpha, gain, beta
        self.register_memory("p", 0.0)
        self.register_memory("q", 0.0)

    def single_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        """One time step; see SpikingJelly's ``MemoryModule``."""
        p, q = states
        q = self.beta * q + (1 - self.beta) * inputs[0]
        p = self.alpha * p + self.gain * q
        return (p,), (p, q)


class RefractoryNode(neuron.BaseNode):
    """A neuron without membrane: ``U = I - rho R``; fires and remembers that it did.

    Args:
        like: its threshold and surrogate are taken over, and ``detach_reset``, which keeps ``R`` out of the graph.
        gamma: decay of ``R``.
        rho: weight of ``R``.
    """

    def __init__(self, like: neuron.BaseNode, gamma: float, rho: float) -> None:
        super().__init__(like.v_threshold, None, like.surrogate_function, like.detach_reset, like.step_mode)
        self.gamma, self.rho = gamma, rho
        self.register_memory("r", 0.0)

    def single_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        """One time step; ``v`` holds ``U``."""
        u = inputs[0] - self.rho * states[1]
        spike = self.surrogate_function(u - self.v_threshold)
        fired = spike.detach() if self.detach_reset else spike
        return (spike,), (u, self.gamma * states[1] + fired)


class DECOLLE(LayerWise):
    """A fixed random read-out per layer, a smooth-L1 loss per time step, synaptic traces as eligibility."""

    name = "decolle"
    summary = "deep continuous local learning: fixed random read-outs, double synaptic traces, smooth-L1 loss per step"
    paper = "Kaiser, Mostafa, Neftci: Synaptic plasticity dynamics for deep continuous local learning, arXiv:1811.10766"
    model = "changed: neurons with a double synaptic trace before the weights and a refractory term for the reset"
    flat_in_time = True
    options: ClassVar[type[DECOLLEOptions]] = DECOLLEOptions

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or which of the needs above is not met."""
        return untraceable_stages(model, loss) or super().supports(model, loss)

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        """Replace the neurons, put traces before the weights, and attach the read-outs."""
        self._change(model.stages)
        return super().prepare(model, example, loss)

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """See :meth:`Method.step`; the gradients of all backwards accumulate, ``update`` is called once."""
        return learn_steps(model, self._parts, x, y, loss, Loss("per_step", _smooth_l1), update)

    def tail(self, model: StagedModel, sample: Sequence[int], classes: int, step_mode: str) -> nn.Module:
        """A fixed random read-out of a layer's whole output."""
        new = read_out(model, sample, classes, step_mode, features=None)
        amplitude = READ_OUT_AMPLITUDE / math.sqrt(math.prod(sample))
        for parameter in new.parameters():
            nn.init.uniform_(parameter.requires_grad_(False), -amplitude, amplitude)
        return new

    def _change(self, stages: nn.Module) -> None:
        """Every weight gets the trace that the neuron after it asks for."""
        modules = list(stages.named_modules())
        node = next(module for _, module in reversed(modules) if type(module) in NEURONS)
        for name, module in reversed(modules):
            if type(module) in NEURONS:
                node = module
                stages.set_submodule(name, RefractoryNode(node, self.opt.gamma, self.opt.rho))
            elif type(module) in WEIGHTS:
                module.add_module("synaptic_trace", SynapticTrace(leak(node), _gain(node), self.opt.beta))
                module.register_forward_pre_hook(_filter)


def _gain(node: Any) -> float:
    return 1 / node.tau if isinstance(node, neuron.LIFNode) and node.decay_input else 1.0


def _filter(weight: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (weight.synaptic_trace(args[0]),)


def _smooth_l1(logits: Tensor, target: Tensor) -> Tensor:
    # Not F.one_hot: on a CPU it also reads the labels' range, which fake tensors cannot, so their bytes would differ.
    classes = torch.arange(logits.shape[-1], device=target.device)
    return F.smooth_l1_loss(logits, (target.unsqueeze(-1) == classes).to(logits.dtype))
