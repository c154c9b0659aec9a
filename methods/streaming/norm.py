"""Batch normalisation in chunks over the batch: its statistics, their use, and their share of the gradient.

With ``m`` elements a channel (over ``T x N x`` positions, or ``N x`` positions of each step under per-step statistics),
``xhat = (y - mean) rstd`` and ``z = gamma xhat + beta``::

    grad_beta = sum dz          grad_gamma = sum dz xhat
    dy = gamma rstd (dz - grad_beta / m - xhat grad_gamma / m)

Two sums couple all samples; everything else is a chunk's own.

A spike that flips by rounding changes the gradient of a deep network visibly, so statistics and ``z`` round where
torch's own kernel on a CPU rounds (``aten/src/ATen/native/cpu/batch_norm_kernel.cpp`` and ``Normalization.cpp``), which
sums in double precision, in two passes, and works in single precision otherwise::

    mean = f32(sum64 y / m);  M2 = f32(sum64 f32((y - mean)^2));  rstd = f32(1 / sqrt(f64(f32(M2 / m)) + eps))
    a = rstd gamma;  b = fma(-mean, a, beta);  z = fma(y, a, b)

Sums in double precision do not depend on how they are split, but for one in some 10^8 that falls on a boundary of
rounding. Channels of one position (``[N, C]``) torch sums row by row in single precision: there its own operator runs,
on the whole batch, which is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from methods.kernels.lif_stream import Affine, steps, valueless

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Moments:
    """Mean and centred square sum of a batch, ``[S, C]``, in two passes; ``S`` is 1, or ``T`` for per-step statistics.

    Args:
        per_step: each time step has its own.
        batch: ``N``.
    """

    def __init__(self, per_step: bool, batch: int) -> None:
        self._per_step, self._batch = per_step, batch
        self._sum: Tensor | None = None
        self._vectors: Tensor | None = None
        self.count = 0
        self.mean: Tensor | None = None
        self.variance: Tensor | None = None
        self.m2: Tensor | None = None

    def add(self, y: Tensor, a: int) -> None:
        """First pass: the chunk ``[T, n, C, ...]`` that starts at sample ``a``."""
        positions = y[0, 0].numel() // y.shape[2]
        if self._sum is None:
            rows = y.shape[0] if self._per_step else 1
            self._sum = y.new_zeros((rows, y.shape[2]), dtype=torch.float64)
            self.count = self._batch * positions * (1 if self._per_step else y.shape[0])
            if positions == 1:
                self._vectors = y.new_empty((y.shape[0], self._batch, y.shape[2]))
        if self._vectors is not None:
            self._vectors[:, a : a + y.shape[1]] = y.flatten(2)
            return
        for t in steps(y):
            self._sum[t if self._per_step else 0] += _channel_sums(y[t])

    def centre(self, dtype: torch.dtype) -> bool:
        """End of the first pass over values of a dtype; whether there has to be a second."""
        assert self._sum is not None
        wide = torch.promote_types(dtype, torch.float32)
        if self._vectors is not None:
            self.mean, self.variance = self._of_vectors(wide)
            self.m2 = self.variance * self.count
            self._vectors = None
            return False
        self.mean = (self._sum / self.count).to(wide)
        self._sum.zero_()
        return True

    def spread(self, y: Tensor) -> None:
        """Second pass: a chunk again."""
        assert self._sum is not None
        assert self.mean is not None
        for t in steps(y):
            row = t if self._per_step else 0
            centred = y[t] - self.mean[row].view(-1, *[1] * (y.dim() - 3))
            self._sum[row] += _channel_sums(centred.square_())

    def settle(self) -> None:
        """End of the second pass."""
        if self._sum is not None and self.m2 is None and self.mean is not None:
            self.m2 = self._sum.to(self.mean.dtype)
            self.variance = self.m2 / self.count

    def _of_vectors(self, wide: torch.dtype) -> tuple[Tensor, Tensor]:
        assert self._vectors is not None
        groups = self._vectors if self._per_step else self._vectors.flatten(0, 1)[None]
        if groups.device.type == "cpu" and groups.dtype == wide and not valueless(groups):
            found = [torch.ops.aten.batch_norm_update_stats(group, None, None, 0.0) for group in groups]
            return torch.stack([mean for mean, _ in found]), torch.stack([variance for _, variance in found])
        mean = groups.mean(1, dtype=torch.float64).to(wide)
        return mean, (groups - mean[:, None]).square_().mean(1, dtype=torch.float64).to(wide)


def _channel_sums(step: Tensor) -> Tensor:
    """``[C]`` in double precision, of one step ``[n, C, ...]``; its temporaries stay in the cache."""
    return step.flatten(2).sum(2, dtype=torch.float64).sum(0)


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
            mean, count = layer.running_mean[None], 0
            rstd = (layer.running_var[None].to(_wide(mean)) + layer.eps).rsqrt_()
        else:
            assert moments.mean is not None
            assert moments.variance is not None
            assert moments.m2 is not None
            mean, count = moments.mean, moments.count
            if layer.training and layer.track_running_stats and layer.running_mean is not None:
                self._update(mean, moments.m2, count)
            rstd = (moments.variance.double() + layer.eps).sqrt_().reciprocal_().to(mean.dtype)
        shape = (mean.shape[0], 1, mean.shape[1], *[1] * (dims - 3))
        return Statistics(mean.to(_wide(mean)).view(shape), rstd.view(shape), count)

    def affine(self, found: Statistics) -> Affine:
        """The layer as a multiplication and an addition."""
        once = found.mean.device.type == "cpu"
        if self.module.weight is None:
            return Affine(found.rstd, -found.mean * found.rstd, once)
        gamma, beta = (p.detach().view(found.mean.shape[1:]) for p in (self.module.weight, self.module.bias))
        scale = found.rstd * gamma
        return Affine(scale, torch.addcmul(beta, found.mean, scale, value=-1), once)

    def _update(self, mean: Tensor, m2: Tensor, count: int) -> None:
        layer = self.module
        unbiased = m2 / max(count - 1, 1)
        for row in range(mean.shape[0]):
            layer.num_batches_tracked.add_(1)
            factor = layer.momentum
            if factor is None:
                factor = 1.0 / layer.num_batches_tracked.double()
            for running, new in ((layer.running_mean, mean[row]), (layer.running_var, unbiased[row])):
                running.copy_(running.double() * (1 - factor) + new.double() * factor)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


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
    if getattr(module, "spans_ranks", False):
        return None  # its statistics are those of several processes' samples: only the layer itself knows how
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
            ours, moments = Norm(kind(2, step_mode="m").double().train(), per_step), Moments(per_step, x.shape[1])
            moments.add(x, 0)
            if moments.centre(x.dtype):
                moments.spread(x)
                moments.settle()
            affine = ours.affine(ours.statistics(moments, x.dim()))
            same = torch.allclose(x * affine.scale + affine.shift, out, rtol=1e-9, atol=1e-9)
            mine, theirs = dict(ours.module.named_buffers()), dict(layer.named_buffers())
            if same and all(torch.allclose(mine[name], value, rtol=1e-9) for name, value in theirs.items()):
                return per_step
    return None
