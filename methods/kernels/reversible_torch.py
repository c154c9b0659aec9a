"""One time step of the reversible node, its inverse and the gradient through the inverse, in torch.

**Reconstruction** of arXiv 2308.08649, whose printed equations are not available: two groups of the input along its
last dimension, six equations in the order ``Y1, V1, Y2, V2``, inverted in the order ``V2, X1, V1, X2``. With ``b`` the
inverse of ``tau`` and ``a = 1 - b``::

    M1 = a V1 + b X1;  Y1 = H(M1 - Vth) + beta X2;  V1' = (1 - Y1) M1 + alpha V1
    M2 = a V2 + b Y1;  Y2 = H(M2 - Vth) + beta X1;  V2' = (1 - Y2) M2 + alpha V2

    V2 = (V2' - b (1 - Y2) Y1) / (a (1 - Y2) + alpha);  M2 = a V2 + b Y1;  X1 = (Y2 - H(M2 - Vth)) / beta
    V1 = (V1' - b (1 - Y1) X1) / (a (1 - Y1) + alpha);  M1 = a V1 + b X1;  X2 = (Y1 - H(M1 - Vth)) / beta

Gradient, from what the inverse has computed, without running the forward again (``g`` for gradients, ``psi`` for the
surrogate derivative at ``M - Vth``)::

    q2 = gY2 - gV2' M2;          gM2 = gV2' (1 - Y2) + q2 psi2;  gX1  = beta q2;  gV2 = alpha gV2' + a gM2
    q1 = gY1 + b gM2 - gV1' M1;  gM1 = gV1' (1 - Y1) + q1 psi1;  gX2  = beta q1;  gV1 = alpha gV1' + a gM1
                                                                 gX1 += b gM1

For ``n`` groups (known of the paper: it has them; how they are coupled is **ours**, and for ``n = 2`` it is the
above) the groups form a chain that closes on itself: the first is driven by ``X1``, group ``i`` by ``Y(i-1)``; ``Yi``
carries ``beta X(i+1)``, the last one ``beta X1``. From the last group to the first each inverse finds what the next
one needs.

``X``, ``Y``, ``V``, ``M`` are lists of ``n`` tensors of one step, ``[N, ..., F / n]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Groups = list[Tensor]


@dataclass(frozen=True)
class Coefficients:
    """The node's constants.

    Args:
        tau: membrane time constant in steps.
        alpha: share of the old membrane that a reset leaves, which makes the reset invertible.
        beta: share of the neighbour's input that an output carries.
        v_threshold: ``Vth``.
        surrogate: SpikingJelly's surrogate module for ``H``.
    """

    tau: float
    alpha: float
    beta: float
    v_threshold: float
    surrogate: Any

    @property
    def a(self) -> float:
        """Leak factor."""
        return 1 - 1 / self.tau

    @property
    def b(self) -> float:
        """Input factor."""
        return 1 / self.tau

    @property
    def bound(self) -> float:
        """What ``beta * max|X|`` must stay below: there ``a (1 - Y) + alpha`` is positive for ``Y = 1 + beta X``."""
        return self.alpha / self.a


@dataclass(frozen=True)
class Inverse:
    """What one inverse step finds.

    Args:
        x: the input.
        v: the membranes before the step.
        m: the charged membranes.
        z: ``M - Vth``.
        rest: ``1 - Y``.
    """

    x: Groups
    v: Groups
    m: Groups
    z: Groups
    rest: Groups


def step(x: Groups, v: Groups, c: Coefficients) -> tuple[Groups, Groups]:
    """``Y`` and ``V'`` of one time step; differentiable by autograd."""
    y: Groups = []
    after: Groups = []
    for i in range(len(x)):
        m = _charge(v[i], (y[-1] if y else x[0]) * c.b, c)
        y.append(c.surrogate(m - c.v_threshold).add(x[(i + 1) % len(x)], alpha=c.beta))
        after.append(((1 - y[i]) * m).add(v[i], alpha=c.alpha))
    return y, after


def inverse(y: Groups, after: Groups, c: Coefficients) -> Inverse:
    """Input and membranes of the step that gave ``Y`` and ``V'``."""
    count = len(y)
    x, v, m, z = list(y), list(y), list(y), list(y)  # every place is overwritten
    rest = [1 - group for group in y]
    for i in reversed(range(count)):
        drive = (y[i - 1] if i else x[0]) * c.b
        v[i] = torch.addcmul(after[i], rest[i], drive, value=-1).div_(rest[i].mul(c.a).add_(c.alpha))
        m[i] = _charge(v[i], drive, c)
        z[i] = m[i] - c.v_threshold
        x[(i + 1) % count] = (y[i] - c.surrogate(z[i])).div_(c.beta)
    return Inverse(x, v, m, z, rest)


def gradient(grad_y: Groups, grad_after: Groups, found: Inverse, c: Coefficients) -> tuple[Groups, Groups]:
    """Gradients of ``X`` and ``V`` from those of ``Y`` and ``V'``; ``grad_after`` is used up."""
    count = len(grad_y)
    grad_y, grad_x, grad_v = list(grad_y), list(grad_y), grad_after
    for i in reversed(range(count)):
        q = torch.addcmul(grad_y[i], grad_after[i], found.m[i], value=-1)
        grad_m = c.surrogate.backward(q, found.z[i], c.surrogate.alpha)
        grad_m = grad_m.addcmul_(grad_after[i], found.rest[i])
        grad_x[(i + 1) % count] = q.mul_(c.beta)
        grad_v[i] = grad_after[i].mul_(c.alpha).add_(grad_m, alpha=c.a)
        if i:
            grad_y[i - 1] = grad_y[i - 1].add(grad_m, alpha=c.b)
        else:
            grad_x[0] = grad_x[0].add_(grad_m, alpha=c.b)
    return grad_x, grad_v


def _charge(v: Tensor, drive: Tensor, c: Coefficients) -> Tensor:
    """``a V + b X``, given ``b X``; forward and inverse round alike."""
    return drive.add(v, alpha=c.a)
