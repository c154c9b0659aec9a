"""Batch normalisation over the samples of all ranks, on any device and for every layer built on torch's.

``torch.nn.SyncBatchNorm`` takes CUDA tensors only, and replacing a layer by it would drop what the layer adds to
torch's: step modes, statistics of each time step, a factor for each. Here the layer stays, and torch's part of it is
replaced, by one more class in its method resolution order.

On CUDA that part is torch's own synchronised kernel; elsewhere, with ``m`` elements a channel and rank::

    mean = (1/g) sum_r mean_r                  var = (1/g) sum_r (var_r + (mean_r - mean)^2)
    dy = gamma rstd (dz - (1/g) sum_r mean dz_r - xhat (1/g) sum_r mean dz_r xhat_r)

which merges the moments of equal parts (Chan, Golub, LeVeque 1979). Gradients of ``gamma`` and ``beta`` are a rank's own,
as all parameters': their mean is taken with the others'.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn.modules._functions import SyncBatchNorm as TorchKernel
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise(model: nn.Module) -> None:
    """Let every batch normalisation of ``model`` take its statistics over all ranks, in place; names stay the same."""
    for module in model.modules():
        kind = next((known for known in _PARTS if isinstance(module, known)), None)
        if kind is not None and not isinstance(module, Synced):
            kinds: tuple[Any, Any] = type(module), kind
            module.__class__ = _class(*kinds)


def synchronised(model: nn.Module) -> tuple[bool | None, str]:
    """Whether a prepared model that has made a step normalises over all ranks; None with the reason where it does not.

    A method may compute a normalisation by itself in place of the layer.
    """
    layers = [module for module in model.modules() if isinstance(module, Synced)]
    idle = sum(not layer.forwards for layer in layers)
    if not layers:
        return None, "the prepared model has no batch normalisation"
    if idle:
        return None, f"the method computes {idle} of {len(layers)} normalisations by itself, from each rank's samples"
    return True, ""


@lru_cache
def _class(kind: Any, base: Any) -> Any:
    part = _PARTS[base]
    # a layer's own class comes first and reaches the synchronised part where it calls super()
    return part if kind is base else type(f"Synced{kind.__name__}", (kind, part), {"__module__": kind.__module__})


class Synced(_BatchNorm):
    """The part that takes the place of torch's forward."""

    spans_ranks = True
    """Tells methods that compute a normalisation by themselves that this one takes more than the rank's samples."""
    forwards = 0
    """How often it was run; 0 after a step means that the method computes the normalisation by itself."""

    def forward(self, input: Tensor) -> Tensor:
        """``[M, C, ...]`` to the same shape."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        self.forwards += 1
        factor, mean, var = self._running()
        fake = isinstance(input, FakeTensor)
        if input.is_cuda and not fake:
            group = dist.group.WORLD
            out: Tensor = TorchKernel.apply(
                input.contiguous(), self.weight, self.bias, mean, var, self.eps, factor, group, dist.get_world_size()
            )
            return out
        out, seen_mean, seen_var = _Normalise.apply(input, self.weight, self.bias, self.eps)
        if mean is not None and var is not None:
            count = input.numel() // input.shape[1] * (1 if fake else dist.get_world_size())
            with torch.no_grad():
                mean.lerp_(seen_mean.to(mean.dtype), factor)
                var.lerp_((seen_var * (count / max(1, count - 1))).to(var.dtype), factor)
        return out

    def _running(self) -> tuple[float, Tensor | None, Tensor | None]:
        """The share of the new statistics in the running ones, and those; None where they are not kept."""
        if not self.track_running_stats or self.running_mean is None:
            return 0.0, None, None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        return factor, self.running_mean, self.running_var


class SyncedBatchNorm1d(Synced, nn.BatchNorm1d):
    """Of ``nn.BatchNorm1d`` and layers built on it."""


class SyncedBatchNorm2d(Synced, nn.BatchNorm2d):
    """Of ``nn.BatchNorm2d`` and layers built on it."""


class SyncedBatchNorm3d(Synced, nn.BatchNorm3d):
    """Of ``nn.BatchNorm3d`` and layers built on it."""


_PARTS: dict[Any, Any] = {
    nn.BatchNorm1d: SyncedBatchNorm1d, nn.BatchNorm2d: SyncedBatchNorm2d, nn.BatchNorm3d: SyncedBatchNorm3d,
}  # fmt: skip


class _Normalise(torch.autograd.Function):
    """Output, mean and (biased) variance of all ranks' samples."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            var, mean = torch.var_mean(_wide(x), dim=_others(x), correction=0)
            moments = _of_all(torch.stack([mean, var]))
            mean = moments[:, 0].mean(0)
            var = (moments[:, 1] + (moments[:, 0] - mean).square()).mean(0)
            kind = x.dtype if weight is None else weight.dtype
            out = nn.functional.batch_norm(x, mean.to(kind), var.to(kind), weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        ctx.mark_non_differentiable(mean, var)
        return out, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, mean, rstd = ctx.saved_tensors
        shape, others = [1, -1, *[1] * (x.dim() - 2)], _others(x)
        dz = _wide(grad)
        xhat = (_wide(x) - mean.view(shape)).mul_(rstd.view(shape))
        sums = torch.stack([dz.sum(others), (dz * xhat).sum(others)])
        means = _of_all(sums).mean(0) / (x.numel() // x.shape[1])
        dx = xhat.mul_(-means[1].view(shape)).add_(dz).sub_(means[0].view(shape))
        dx.mul_((rstd if weight is None else rstd * weight).view(shape))
        own = (None, None) if weight is None else (sums[1].to(weight.dtype), sums[0].to(weight.dtype))
        return dx.to(x.dtype), *own, None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _others(x: Tensor) -> list[int]:
    """All dimensions but the channels'."""
    return [0, *range(2, x.dim())]


def _of_all(value: Tensor) -> Tensor:
    """Every rank's value, ``[g, ...]``; under fake tensors this rank's alone, where only shapes matter."""
    if isinstance(value, FakeTensor):
        return value.unsqueeze(0)
    found = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(found, value.contiguous())
    return torch.stack(found)
