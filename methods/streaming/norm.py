"""Batch normalisation in chunks over the batch: statistics that merge, their use, and their share of the gradient.

With ``m`` elements a channel (over ``T x N x`` positions, or ``N x`` positions of each step under per-step statistics),
``xhat = (y - mean) rstd`` and ``z = gamma xhat + beta``::

    d = mean' - mean;   mean <- mean + d m' / (m + m');   M2 <- M2 + M2' + d^2 m m' / (m + m')
    grad_beta = sum dz          grad_gamma = sum dz xhat
    dy = gamma rstd (dz - grad_beta / m - xhat grad_gamma / m)

(the first line merges the moments of two parts: Chan, Golub, LeVeque 1979). Two sums couple all samples; everything
else is a chunk's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from methods.kernels.lif_stream import Affine, steps

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass
class Moments:
    """Mean and centred square sum of the samples seen so far, ``[S, C]``; ``S`` is 1, or ``T`` for per-step statistics.

    Args:
        per_step: each time step has its own.
    """

    per_step: bool
    count: int = 0
    mean: Tensor | None = None
    m2: Tensor | None = None

    def add(self, y: Tensor) -> None:
        """Merge a chunk ``[T, n, C, ...]``."""
        count = y[0].numel() // y.shape[2]
        wide = torch.promote_types(y.dtype, torch.float32)
        mean, m2 = torch.empty((2, y.shape[0], y.shape[2]), dtype=wide, device=y.device)
        for t in steps(y):
            _moments(y[t], mean[t], m2[t])
        if not self.per_step:
            middle = mean.mean(0, keepdim=True)
            m2 = (m2 + (mean - middle).square_().mul_(count)).sum(0, keepdim=True)
            mean, count = middle, count * y.shape[0]
        if self.mean is None or self.m2 is None:
            self.mean, self.m2, self.count = mean, m2, count
            return
        total = self.count + count
        delta = mean - self.mean
        self.m2.add_(m2).add_(delta.square().mul_(self.count * count / total))
        self.mean.add_(delta.mul_(count / total))
        self.count = total


def _moments(step: Tensor, mean: Tensor, m2: Tensor) -> None:
    """Mean and centred square sum ``[C]`` of one step ``[n, C, ...]``; its temporaries stay in the cache."""
    flat = step.flatten(2) if step.dim() > 2 else step.unsqueeze(2)
    torch.sum(flat.sum(2, dtype=mean.dtype), 0, out=mean).div_(flat.shape[0] * flat.shape[2])
    centred = flat - mean.view(1, -1, 1)
    torch.sum(centred.square_().sum(2), 0, out=m2)


@dataclass
class Statistics:
    """What a forward leaves for the backward.

    Args:
        mean: ``[S, 1, C, 1, ...]``.
        rstd: the same shape.
        count: elements a channel and row; 0 where the statistics do not depend on the batch.
    """

    mean: Tensor
    rstd: Tensor
    count: int


class Norm:
    """A batch normalisation layer of a unit.

    Args:
        module: the layer.
        per_step: whether it computes the statistics of each time step.
    """

    def __init__(self, module: Any, per_step: bool) -> None:
        self.module, self.per_step = module, per_step

    @property
    def coupled(self) -> bool:
        """True if the output of a sample depends on the other samples."""
        return self.module.training or self.module.running_mean is None

    def statistics(self, moments: Moments | None, dims: int) -> Statistics:
        """Statistics to normalise with; those of the batch update the running ones, as the layer itself does.

        Args:
            moments: of the whole batch; None where the running ones are used.
            dims: of the layer's input ``[T, N, C, ...]``.
        """
        layer = self.module
        if moments is None:
            mean, variance, count = layer.running_mean[None], layer.running_var[None], 0
        else:
            assert moments.mean is not None
            assert moments.m2 is not None
            mean, variance, count = moments.mean, moments.m2 / moments.count, moments.count
            if layer.training and layer.track_running_stats and layer.running_mean is not None:
                self._update(mean, moments.m2, count)
        wide = torch.promote_types(variance.dtype, torch.float32)
        rstd = (variance.to(wide) + layer.eps).rsqrt_()
        shape = (mean.shape[0], 1, mean.shape[1], *[1] * (dims - 3))
        return Statistics(mean.to(wide).view(shape), rstd.view(shape), count)

    def affine(self, found: Statistics) -> Affine:
        """The layer as a multiplication and an addition."""
        scale, shift = found.rstd, -found.mean * found.rstd
        if self.module.weight is not None:
            gamma, beta = (p.detach().view(found.mean.shape[1:]) for p in (self.module.weight, self.module.bias))
            scale = found.rstd * gamma
            shift = beta - found.mean * scale
        return Affine(scale, shift)

    def _update(self, mean: Tensor, m2: Tensor, count: int) -> None:
        layer = self.module
        unbiased = m2 / max(count - 1, 1)
        for row in range(mean.shape[0]):
            layer.num_batches_tracked.add_(1)
            factor = layer.momentum
            if factor is None:
                factor = 1.0 / layer.num_batches_tracked.to(mean.dtype)
            for running, new in ((layer.running_mean, mean[row]), (layer.running_var, unbiased[row])):
                running.add_((new - running) * factor)


class Coupling:
    """The sums ``sum dz`` and ``sum dz (y - mean)``, ``[S, C]``, and what they do to the gradient.

    Args:
        norm: the layer.
        found: its statistics.
    """

    def __init__(self, norm: Norm, found: Statistics) -> None:
        self._norm, self._found = norm, found
        rows, _, channels = found.mean.shape[:3]
        self._beta, self._gamma = found.mean.new_zeros((2, rows, channels))

    def add(self, y: Tensor, dz: Tensor) -> None:
        """A chunk's share; ``y [T, n, C, ...]`` before the normalisation."""
        mean = self._found.mean
        for t in steps(y):
            row = t if self._norm.per_step and mean.shape[0] > 1 else 0
            step = dz[t].flatten(2) if dz.dim() > 3 else dz[t].unsqueeze(2)
            self._beta[row] += step.sum(2, dtype=mean.dtype).sum(0)
            centred = (y[t] - mean[row]).mul_(dz[t])
            self._gamma[row] += (centred.flatten(2) if dz.dim() > 3 else centred.unsqueeze(2)).sum(2).sum(0)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Of ``gamma`` and ``beta``, ``[C]``."""
        rstd = self._found.rstd.view(self._gamma.shape)
        return (self._gamma * rstd).sum(0), self._beta.sum(0)

    def settle(self) -> None:
        """All chunks have been added: work out ``dy = scale dz + a y + b``."""
        found, shape = self._found, self._found.mean.shape
        self._scale = self._norm.affine(found).scale
        if found.count:
            self._a = -self._scale * found.rstd.square() * self._gamma.view(shape) / found.count
            self._b = -self._scale * self._beta.view(shape) / found.count - self._a * found.mean

    def through(self, y: Tensor, dz: Tensor) -> Tensor:
        """``dy`` of a chunk, over ``y``; ``dz`` is used up."""
        for t in steps(y):
            row = t if self._scale.shape[0] > 1 else 0
            dz[t].mul_(self._scale[row])
            if self._found.count:
                y[t].mul_(self._a[row]).add_(self._b[row]).add_(dz[t])
        return y if self._found.count else dz


def classify(module: nn.Module, sequence: bool) -> bool | None:
    """True where a batch normalisation takes per-step statistics, False for those over ``T x N``, None for neither.

    What a layer computes decides, not what it is called: a copy of it with values of its own is tried on a small batch.

    Args:
        module: the layer.
        sequence: it takes ``[T, N, C, ...]``; otherwise it is applied to ``[T N, C, ...]``.
    """
    if not isinstance(module, KINDS) or (module.weight is None) != (module.bias is None):
        return None
    if not sequence:
        return False if type(module) in KINDS else None
    if getattr(module, "step_mode", "s") != "m":
        return None
    spatial = 1 + [isinstance(module, kind) for kind in KINDS].index(True)
    kind: Any = type(module)
    return _tried(kind, spatial)


@lru_cache
def _tried(kind: Any, spatial: int) -> bool | None:
    with unset_fake_temporarily(), torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
        try:
            layer = kind(2, step_mode="m").double().train()
            torch.manual_seed(0)
            x = torch.randn(3, 4, 2, *[2] * spatial, dtype=torch.float64)
            out = layer(x)
        except (TypeError, ValueError, RuntimeError):
            return None
        for per_step in (False, True):
            ours, moments = Norm(kind(2, step_mode="m").double().train(), per_step), Moments(per_step)
            moments.add(x)
            affine = ours.affine(ours.statistics(moments, x.dim()))
            same = torch.allclose(x * affine.scale + affine.shift, out, rtol=1e-9, atol=1e-9)
            mine, theirs = dict(ours.module.named_buffers()), dict(layer.named_buffers())
            if same and all(torch.allclose(mine[name], value, rtol=1e-9) for name, value in theirs.items()):
                return per_step
    return None
