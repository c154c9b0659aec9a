"""Reversible SNN node (arXiv 2308.08649, seed 001). **Reconstruction**: its printed equations are not available.

Every LIF layer becomes a node of which the input and the membrane before a step follow from the output and the
membrane after it. Two groups of its input and membrane, ``a = 1 - 1/tau``, ``b = 1/tau``::

    M1 = a V1 + b X1;  Y1 = H(M1 - Vth) + beta X2;  V1' = (1 - Y1) M1 + alpha V1
    M2 = a V2 + b Y1;  Y2 = H(M2 - Vth) + beta X1;  V2' = (1 - Y2) M2 + alpha V2

:mod:`methods.kernels.reversible_torch` has their inverse, the gradient through it, and more than two groups.
``alpha`` keeps the reset invertible, ``beta`` carries the neighbour's input through the output. Known of the paper:
the two groups, the order of the equations and of the inverse, the part that ``alpha`` plays, a real-valued output,
groups along the last dimension. Ours: the rest of the equations, and how more than two groups are coupled.

It is a **different neuron**: accuracy has to be established anew. ``tau``, ``Vth`` and the surrogate are those of the
LIF that it replaces; the reset is ``V' = (1 - Y) M + alpha V`` and part of the gradient, the input is scaled by
``1/tau``, whatever the LIF's ``v_reset``, ``detach_reset`` and ``decay_input`` say. The output is real-valued: the
next layer reads floats, which cannot be packed into bits.

Stored (``reforward``, ``inverse_graph``): outputs, which the next layer needs anyway, and the last membranes. The
node adds nothing that grows with ``T``; the network still does. ``stored`` is plain autograd on the same neuron.

Needs from the model: LIF neurons only, and an input of each whose last dimension divides into the groups; float32 or
float64, because the inverse divides by ``beta``: inside autocast the node computes in float32, and half-precision
models are refused. The inverse is ill-conditioned where ``a (1 - Y) + alpha`` nears 0, so two
conditions are enforced: ``alpha <= 1 - a``, and at every step ``beta max|X| < alpha / a``. Rounding still grows while
a sequence is inverted, and a spike that is decided differently then spoils its neuron's gradient: the plan tells how
far the inverse ended from the membranes that the sequence had started with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from spikingjelly.activation_based import neuron
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from harness.contracts import Loss, Method, Options, StagedModel, StepOutput, Unsupported
from methods.bptt_fused import neurons
from methods.kernels.reversible import Backward, Layout, ReversibleLIFNode
from methods.kernels.reversible_torch import Coefficients

DIM = {"last": -1, "channel": 1}
"""Dimension of one step, ``[N, C, ...]``, that is cut into groups."""


class NotInvertibleError(Unsupported, ArithmeticError):
    """An input is so large that the node cannot be inverted."""


class ReversibleNodeOptions(Options):
    """Options of :class:`ReversibleNode`.

    Attributes:
        backward: ``stored`` (plain autograd), ``reforward`` (inverse, then the forward again), or ``inverse_graph``
            (gradient from the inverse's own intermediates).
        alpha: share of the old membrane that a reset leaves. The paper's value is unknown.
        beta: share of the neighbour's input that an output carries. The paper's value is unknown; at 0.05 and tau = 2
            inputs up to 20 can be inverted, at 0.1 up to 10, with the same rounding error.
        groups: into how many groups the input is cut; 2 in the equations above.
        split: along which dimension: the ``last``, as in the paper (an image's width), or the ``channel``, for layers
            whose last dimension does not divide (ours).
    """

    backward: Backward = "inverse_graph"
    alpha: float = Field(0.5, gt=0.0, allow_inf_nan=False)
    beta: float = Field(0.05, gt=0.0, allow_inf_nan=False)
    groups: int = Field(2, ge=2)
    split: Literal["last", "channel"] = "last"


class ReversibleNode(Method):
    """BPTT on reversible nodes."""

    name = "reversible-node"
    summary = "reversible neuron: the backward reconstructs inputs and membranes from outputs (reconstruction)"
    paper = "Lei et al.: Towards zero memory footprint spiking neural network training, arXiv:2308.08649"
    gradient = "exact"
    model = "changed: every LIF becomes a reversible node, a different neuron with a real-valued output"
    reconstruction = True
    options = ReversibleNodeOptions

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self._nodes: dict[str, ReversibleLIFNode] = {}
        self._largest = 0.0

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or why the neurons cannot be replaced, with the figures."""
        nodes = neurons(model)
        if not nodes:
            return "the model has no neuron to replace"
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters()):
            return "the inverse divides by beta, which needs float32; the model's parameters have half precision"
        reasons = (f"{name}: {reason}" for name, node in nodes if (reason := self._irreplaceable(node)))
        return next(reasons, None)

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        """Replace every LIF by a reversible node with its ``tau``, threshold and surrogate."""
        layout = Layout(self.opt.groups, DIM[self.opt.split])
        nodes = {
            module: ReversibleLIFNode(self._coefficients(module), layout, self.opt.backward)
            for module in model.modules()
            if type(module) is neuron.LIFNode
        }
        for parent in list(model.modules()):
            for name, child in parent._modules.items():
                if child in nodes:
                    parent._modules[name] = nodes[child]
        self._nodes = {name: m for name, m in model.named_modules() if isinstance(m, ReversibleLIFNode)}
        return model.train(model.training)

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """See :meth:`Method.step`.

        Raises:
            NotInvertibleError: ``beta max|X|`` has reached ``alpha / a`` in a layer.
        """
        logits = model(x)
        value = loss(logits, y)
        self._check_inputs()
        loss.backward(value)
        update()
        return StepOutput(value.detach(), logits.detach().mean(0))

    def finish(self, model: StagedModel) -> nn.Module:
        """The network of reversible nodes, with plain autograd."""
        for module in model.modules():
            if isinstance(module, ReversibleLIFNode):
                module.backward = "stored"
        return model

    def plan(self) -> dict[str, Any]:
        """What ran.

        ``nodes`` (how many), ``computes_in``, ``max_input`` (largest ``|X|`` so far; null under fake tensors), and
        ``max_drift`` (distance of an inverse's end from the start of its sequence; null where nothing was inverted, and
        "not finite" where it was lost altogether).
        """
        drifts = [float(n.drift) for n in self._nodes.values() if n.drift is not None and not _is_fake(n.drift)]
        drift: float | str | None = max(drifts, default=None)
        if not all(map(math.isfinite, drifts)):
            drift = "not finite"
        plan = {"nodes": len(self._nodes), "computes_in": "float32 or wider, also inside autocast"}
        return plan | {"max_input": self._largest or None, "max_drift": drift}

    def _coefficients(self, node: Any) -> Coefficients:
        return Coefficients(node.tau, self.opt.alpha, self.opt.beta, node.v_threshold, node.surrogate_function)

    def _irreplaceable(self, node: Any) -> str | None:
        if type(node) is not neuron.LIFNode:
            return f"{type(node).__name__} has no reversible counterpart; LIFNode has"
        if node.step_mode != "m":
            return "runs one time step at a time"
        c = self._coefficients(node)
        if c.alpha > c.b:
            return f"alpha is {c.alpha:g}, but must be at most 1 - a = 1 / tau = {c.b:g} (tau = {c.tau:g})"
        return None

    def _check_inputs(self) -> None:
        """Read ``max|X|`` of all layers at once: one wait for the device a step. Fake tensors have no values."""
        ran = {name: node.largest for name, node in self._nodes.items() if node.largest is not None}
        measured = torch.stack(list(ran.values()))
        if _is_fake(measured):
            return
        for name, largest in zip(ran, measured.tolist(), strict=True):
            c = self._nodes[name].coefficients
            if c.beta * largest >= c.bound:
                raise NotInvertibleError(
                    f"{name}: beta * max|X| is {c.beta:g} * {largest:.4g}, but must stay below alpha / a = {c.bound:g} "
                    f"(alpha = {c.alpha:g}, tau = {c.tau:g}): take a smaller beta"
                )
            self._largest = max(self._largest, largest)


def _is_fake(value: Any) -> bool:
    return isinstance(value, FakeTensor)
