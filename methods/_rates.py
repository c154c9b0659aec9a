"""Rate-based backpropagation by layers: what the spiking pass records, and the layer of the rate graph made from it.

Neuron, with ``u[t]`` the membrane before the reset and ``psi[t]`` the surrogate derivative at ``u[t] - Vth``; ``e[t]``
is ``du[t]/dc`` for an input current ``c`` that is the same at every step::

    r = mean_t s[t]        g = mean_t e[t] psi[t]        e[0] = b        e[t+1] = b + lam d[t] e[t]
    d[t] = dv[t]/du[t]:  soft reset  1 [- Vth psi[t]]        hard reset  1 - s[t] [+ (v_reset - u[t]) psi[t]]

``b`` is 1, or ``1/tau`` where the input decays; terms in brackets only where the reset is not detached. In the rate
graph the layer has the value ``r`` and the slope ``dr/dc := g``.

Batch normalisation, as the authors' code does it: the mean and the variance have the values of the spiking pass and the
gradients of the mean and the variance of the rate pass. Statistics of each step are averaged, as ``mean_t mu[t]`` and
``1 / mean_t (1 / (var[t] + eps))``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, Self

import torch
from spikingjelly.activation_based import base, layer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from harness.contracts import StagedModel
from methods._online import not_single_step
from methods._traces import NEURONS, WEIGHTS, leak, neurons
from methods.bptt_fused import constants, unfusable
from methods.kernels import lif


class Rates:
    """A context in which a model's neurons and batch normalisations record a spiking pass, for one sequence.

    Args:
        model: supported, see :func:`unrated`.
    """

    def __init__(self, model: StagedModel) -> None:
        self._model = model
        self._neurons = {node: RateNeuron(node) for _, node in neurons(model)}
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
        self._norms = {norm: RateNorm(norm, model.normalisation == "over_time") for norm in norms}
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        """Start to record."""
        node: Any
        for node, twin in self._neurons.items():
            node.forward = partial(twin.spikes, node)
        self._hooks = [norm.register_forward_pre_hook(twin.observe) for norm, twin in self._norms.items()]
        return self

    def __exit__(self, *_: Any) -> None:
        """Leave the model as it was."""
        node: Any
        for node in self._neurons:
            del node.forward
        for hook in self._hooks:
            hook.remove()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model computes on rates: neurons and batch normalisations are replaced by what they recorded."""
        twins: dict[nn.Module, Any] = {**self._neurons}
        twins.update(self._norms.items())
        places = [
            (parent, name, child)
            for parent in self._model.modules()
            for name, child in parent._modules.items()
            if child in twins
        ]
        for parent, name, child in places:
            twins[child].settle()
            parent._modules[name] = twins[child]
        try:
            yield
        finally:
            for parent, name, child in places:
                parent._modules[name] = child


class RateNeuron(nn.Module):
    """A neuron layer: eligibility and mean spike of the spiking pass, then the layer of the rate graph."""

    def __init__(self, node: Any) -> None:
        super().__init__()
        self._neuron = constants(node)
        self._leak = leak(node)
        decays = self._neuron.tau is not None and self._neuron.decay_input
        self._input_scale = 1 - self._leak if decays else 1.0
        self._v: Tensor | float = self._neuron.v_reset or 0.0
        self._e: Tensor | float = self._input_scale
        self._rate: Any = None
        self._slope: Any = None
        self._steps = 0

    def spikes(self, node: Any, x: Tensor) -> Tensor:
        """The neuron's forward in the spiking pass, in its own step mode."""
        if node.step_mode == "s":
            return self._fire(x)
        out = torch.empty_like(x)
        for t in range(len(x)):
            out[t] = self._fire(x[t])
        return out

    def settle(self) -> None:
        """The spiking pass is over: take means, drop states."""
        if self._steps:
            self._rate.div_(self._steps)
            self._slope.div_(self._steps)
            self._v = self._e = 0.0
            self._steps = 0

    def forward(self, current: Tensor) -> Tensor:
        """The rate ``r`` for the rate graph's current ``c [N, ...]``."""
        rate, self._rate = self._rate.to(current.dtype), None
        return _Rate.apply(current, rate, self._slope)

    def _fire(self, x: Tensor) -> Tensor:
        """One step, ``[N, ...]``: spikes."""
        neuron = self._neuron
        (s,), self._v, (u,) = lif.kernel(x.device).forward(x.unsqueeze(0), self._v, None, neuron, keep=True)
        psi = neuron.surrogate.backward(torch.ones_like(u), u - neuron.v_threshold, neuron.surrogate.alpha)
        if self._steps == 0:
            wide = torch.promote_types(x.dtype, torch.float32)  # sums over time
            self._rate, self._slope = torch.zeros_like(s, dtype=wide), torch.zeros_like(s, dtype=wide)
        self._rate.add_(s)
        self._slope.add_(self._e * psi)
        self._e = self._input_scale + self._leak * self._kept(s, u, psi) * self._e
        self._steps += 1
        return s

    def _kept(self, s: Tensor, u: Tensor, psi: Tensor) -> Tensor | float:
        """``dv[t]/du[t]``."""
        neuron = self._neuron
        if neuron.v_reset is None:
            return 1.0 if neuron.detach_reset else 1 - neuron.v_threshold * psi
        return 1 - s if neuron.detach_reset else 1 - s + (neuron.v_reset - u) * psi


class _Rate(torch.autograd.Function):
    """Value ``rate``, derivative ``slope``."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, rate: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return rate

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return (grad * slope).to(grad.dtype), None, None


class RateNorm(nn.Module):
    """Batch normalisation: statistics of the spiking pass, then the layer of the rate graph."""

    def __init__(self, norm: _BatchNorm, over_time: bool) -> None:
        super().__init__()
        self.weight, self.bias, self._eps = norm.weight, norm.bias, norm.eps
        self._over_time = over_time
        self._mean: Any = 0.0
        self._reciprocal: Any = 0.0
        self._steps = 0

    def observe(self, norm: Any, args: tuple[Tensor, ...]) -> None:
        """Record the statistics that the module is about to normalise with."""
        (x,) = args
        if norm.step_mode == "s":
            x = x.unsqueeze(0)
        elif self._over_time:
            x = x.flatten(0, 1).unsqueeze(0)
        var, mean = torch.var_mean(_widened(x), dim=[1, *range(3, x.dim())], correction=0)
        self._mean = self._mean + mean.sum(0)
        self._reciprocal = self._reciprocal + (1 / (var + self._eps)).sum(0)
        self._steps += len(x)

    def settle(self) -> None:
        """The spiking pass is over: take means."""
        if self._steps:
            self._mean, self._reciprocal = self._mean / self._steps, self._reciprocal / self._steps
            self._steps = 0

    def forward(self, z: Tensor) -> Tensor:
        """``[N, C, ...]`` to the same shape."""
        wide, dims = _widened(z), [0, *range(2, z.dim())]
        var, mean = torch.var_mean(wide, dim=dims, correction=0, keepdim=True)
        shape = mean.shape
        mean = _valued(mean, self._mean.view(shape))
        var = _valued(var, 1 / self._reciprocal.view(shape))
        out = (wide - mean) * var.rsqrt()
        if self.weight is not None:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(z.dtype)


def _valued(x: Tensor, value: Tensor) -> Tensor:
    """``value`` with the gradient of ``x``."""
    return value + (x - x.detach())


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unrated(model: StagedModel) -> str | None:
    """Which module has no place in a rate graph, and why, or None."""
    seen: set[nn.Module] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        reason = "it runs twice, and would mix two rates" if module in seen else None
        if isinstance(module, (base.MemoryModule, _BatchNorm)):
            seen.add(module)
        reason = reason or _problem(module)
        if reason is not None:
            return f"has no rate for {name or 'the model'} ({type(module).__name__}): {reason}"
    if not neurons(model):
        return "the model has no LIF or IF neuron, and so no rates"
    return not_single_step(model)


def _problem(module: Any) -> str | None:
    if isinstance(module, NEURONS):
        return unfusable(module)
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return "it draws another mask for the rates; SpikingJelly's layer.Dropout keeps the spikes'"
    if isinstance(module, _BatchNorm) and not isinstance(module, base.StepModule):
        return "it is torch's, without step modes"
    if isinstance(module, layer.Dropout):
        return None
    if isinstance(module, base.MemoryModule):
        return "only LIFNode and IFNode have one"
    if isinstance(module, _BatchNorm) or type(module) in WEIGHTS or all(p is None for p in module._parameters.values()):
        return None
    return "its parameters are not those of a convolution, a linear layer or a batch normalisation"
