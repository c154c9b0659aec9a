"""BPTT with neurons fused over time: the second baseline, for methods that bring a neuron kernel of their own.

``u[t] = v[t-1] + (x[t] - v[t-1] + r) / tau``, ``s[t] = H(u[t] - Vth)``, soft or hard reset: the network and its
gradient are those of :mod:`methods.bptt`. Each LIF, IF and PLIF layer runs as one operator over all ``T`` steps, as
MELIF does it in the ICLR 2026 paper on checkpointing and spike compression. Its backward, with ``g[t]`` the gradient of
``s[t]``, ``psi`` the surrogate derivative and ``lam = 1 - 1/tau`` (hard reset to 0, ``Vth = 1``, the input as it is)::

    for t = T .. 1:  d = g[t] psi[t] + r (1 - s[t])   [reset in the graph: - r u[t] psi[t]];  grad x[t] = d;  r <- lam d

:mod:`methods.kernels.lif_torch` has both passes for every reset, leak and way of charging.

Stored per neuron layer: one tensor of the size of its input, the membranes ``u[t]`` (``save=membrane``, MELIF's way) or
the input itself, from which ``u`` is computed again (``save=input``); never both, nor the spikes, which belong to the
layer that reads them. Temporaries have one step's size, and the input's gradient takes the membranes' memory. The rest
of the network is stored as in BPTT.

Needs from the model: at least one neuron that can be fused - SpikingJelly's LIF, IF or PLIF in multi-step mode with a
surrogate whose derivative SpikingJelly offers. Other neurons stay as they are, and the plan names them.
"""

from __future__ import annotations

from typing import Any

import torch
from spikingjelly.activation_based import base, neuron, surrogate
from torch import Tensor, nn

from harness.contracts import Loss, Options, StagedModel
from methods.bptt import BPTT
from methods.kernels import lif
from methods.kernels.lif_torch import Neuron

SURROGATES = (
    surrogate.Sigmoid, surrogate.ATan, surrogate.PiecewiseQuadratic, surrogate.PiecewiseExp, surrogate.SoftSign,
    surrogate.SuperSpike, surrogate.Erf,
)  # fmt: skip
"""Those that SpikingJelly's own fused neurons take (``_ops/surrogate.py``)."""


class _Fused:
    """Overrides the forward over a sequence; everything else stays the neuron's."""

    save: lif.Save = "membrane"

    def multi_step_forward(self: Any, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Spikes ``[T, N, ...]`` of an input ``[T, N, ...]``; leaves the last membrane behind."""
        if self.store_v_seq:
            return PLAIN[type(self)].multi_step_forward(self, x_seq, *args, **kwargs)
        v0 = self.v
        if isinstance(v0, Tensor):
            (v0,) = self.materialize_states((x_seq,), (v0,), "m")
        q = self.w.sigmoid() if isinstance(self, neuron.ParametricLIFNode) else None
        spikes, self.v = lif.sequence(x_seq, v0, q, constants(self), self.save)
        return spikes


class FusedLIFNode(_Fused, neuron.LIFNode):
    """SpikingJelly's LIF, one operator over time."""


class FusedIFNode(_Fused, neuron.IFNode):
    """SpikingJelly's IF, one operator over time."""


class FusedParametricLIFNode(_Fused, neuron.ParametricLIFNode):
    """SpikingJelly's PLIF, one operator over time."""


FUSED: dict[type[nn.Module], Any] = {
    neuron.LIFNode: FusedLIFNode,
    neuron.IFNode: FusedIFNode,
    neuron.ParametricLIFNode: FusedParametricLIFNode,
}
PLAIN: dict[type[nn.Module], Any] = {fused: plain for plain, fused in FUSED.items()}


class BPTTFusedOptions(Options):
    """Options of :class:`BPTTFused`.

    Attributes:
        save: what a neuron layer keeps for its backward: the ``membrane`` before the reset, or its ``input``.
    """

    save: lif.Save = "membrane"


class BPTTFused(BPTT):
    """BPTT's training loop on fused neurons."""

    name = "bptt-fused"
    summary = "BPTT with LIF, IF and PLIF fused over time, keeping one tensor per neuron layer: the second baseline"
    paper = "fused neuron (MELIF) of: gradient checkpointing + spike compression, ICLR 2026"
    gradient = "exact"
    # Methods with this kernel name it as their baseline; its own row, against bptt, is what the kernel gains.
    baseline = "bptt"
    options = BPTTFusedOptions

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self._plan: dict[str, Any] = {}

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or that the model has no neuron to fuse, with the reason for each that it has."""
        reasons = {name: unfusable(node) for name, node in neurons(model)}
        if None in reasons.values():
            return None
        return "; ".join(["the model has no neuron that can be fused", *(f"{n}: {r}" for n, r in reasons.items())])

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        """Turn neurons into fused ones in place: same objects, same state_dict keys, another forward."""
        left = {}
        fused = 0
        for name, node in neurons(model):
            reason = unfusable(node)
            if reason is not None:
                left[name] = reason
                continue
            node.__class__ = FUSED[type(node)]
            node.save = self.opt.save
            fused += 1
        kernel = lif.kernel(example.device).NAME
        self._plan = {"save": self.opt.save, "kernel": kernel, "fused_neurons": fused, "left_neurons": left}
        return model

    def finish(self, model: StagedModel) -> nn.Module:
        """The model with SpikingJelly's neurons again."""
        for module in model.modules():
            if type(module) in PLAIN:
                module.__class__ = PLAIN[type(module)]
                del module.save
        return model

    def plan(self) -> dict[str, Any]:
        """``save``, ``kernel``, ``fused_neurons`` (how many), ``left_neurons`` (name to reason)."""
        return self._plan


def neurons(model: nn.Module) -> list[tuple[str, Any]]:
    """SpikingJelly's neuron layers with their names, each once."""
    kinds = (neuron.BaseNode, neuron.SimpleBaseNode)
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]


def unfusable(node: base.MemoryModule) -> str | None:
    """Why a neuron layer stays as it is, or None."""
    if type(node) not in FUSED:
        return f"{type(node).__name__} is not LIFNode, IFNode or ParametricLIFNode"
    if node.step_mode != "m":
        return "runs one time step at a time"
    if node._neuron_precision is not None:
        return "computes in a precision of its own"
    kind = type(node.surrogate_function)
    if kind not in SURROGATES or not node.surrogate_function.spiking:
        return f"the surrogate {kind.__name__} has no derivative that can be called"
    alpha = node.surrogate_function.alpha
    return "the surrogate's width is a tensor" if isinstance(alpha, torch.Tensor) else None


def constants(node: Any) -> Neuron:
    """A neuron layer's numbers, as the kernels take them."""
    return Neuron(
        tau=node.tau if isinstance(node, neuron.LIFNode) else None,
        decay_input=getattr(node, "decay_input", True),
        v_threshold=node.v_threshold,
        v_reset=node.v_reset,
        detach_reset=node.detach_reset,
        surrogate=node.surrogate_function,
    )
