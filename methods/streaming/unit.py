"""One streamed layer: convolution or linear - normalisation - neuron, forwards and backwards in chunks over the batch.

Kept from the forward: the packed input, which the layer before delivered anyway, and per-channel mean and ``rstd``; on
request also the convolution's output ``y`` (``keep="y"``) or ``y`` and the membranes (``keep="u"``).

Forward, three times over the chunks, with ``convs=3`` from the input (otherwise ``y`` lives until the last pass)::

    1. y = conv(unpack(x));  sum y
    2. y again;  sum (y - mean)^2
    3. y again;  z = scale y + shift;  u, s = neuron(z);  pack(s)

Backward, with the incoming gradient ``g``::

    1. y again;  u from z = scale y + shift;  dz = neuron's backward(g, u);  sum dz, sum dz (y - mean)
    2. y again;  dy from dz, y and the two sums;  (grad_x, dW) = conv's backward(dy, x);  write grad_x's samples

``dz`` waits for the second pass in ``g``'s own memory where that is nobody else's; ``back="all"`` computes it again
instead, ``back="once"`` keeps ``y`` from the first pass for the second. Without batch statistics there is no first
pass. Where ``grad_x`` has the shape of ``g`` it takes its memory: a chunk of ``g`` is not needed once it was read.

Without a neuron (the branches of MS-ResNet and of spiking ResNets end in a normalisation) the output is ``z`` itself,
unpacked, and ``dz`` is ``g``.

Under fake tensors, which have no values, two chunks stand for all of their length: the bytes are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from methods.kernels import lif_stream
from methods.kernels.lif_stream import Affine
from methods.kernels.lif_torch import Neuron
from methods.streaming.norm import Norm, Statistics
from methods.streaming.ops import Leaf, Op, run_leaves
from methods.streaming.rows import Rows

Keep = Literal["x", "y", "u"]
Back = Literal["once", "twice", "all"]


@dataclass(frozen=True)
class Mode:
    """How a unit runs.

    Args:
        chunks: of the batch.
        keep: ``x`` the packed input only, ``y`` also the convolution's output, ``u`` also the membranes.
        convs: convolutions in the forward, 1 or 3.
        back: with ``keep="x"``: the backward recomputes the convolution ``once`` and holds its output, ``twice``, or
            twice and the neuron's backward too (``all``).
    """

    chunks: int = 1
    keep: Keep = "x"
    convs: int = 1
    back: Back = "twice"


@dataclass
class Saved:
    """What a unit keeps beside its input.

    Args:
        statistics: of the normalisation.
        ys: convolution outputs, a tensor a chunk.
        us: membranes before the reset, a tensor a chunk.
        q: PLIF's ``1 / tau``.
        v0: initial membrane.
        amp: the dtype that autocast asked for, or None.
    """

    statistics: Statistics | None = None
    ys: list[Tensor | None] = field(default_factory=list)
    us: list[Tensor | None] = field(default_factory=list)
    q: Tensor | None = None
    v0: Any = 0.0
    amp: torch.dtype | None = None


@dataclass
class Unit:
    """The modules of a streamed layer.

    Args:
        pre: parameter-free modules before the weights.
        op: the weights; None for a neuron alone.
        norm: the normalisation, if any.
        mid: parameter-free modules between normalisation and neuron.
        node: the neuron layer; None where the normalised output itself is added to something.
        neuron: its constants; None without a neuron.
        post: pooling after the neuron.
    """

    pre: list[Leaf]
    op: Op | None
    norm: Norm | None
    mid: list[Leaf]
    node: Any
    neuron: Neuron | None
    post: list[Leaf]

    @property
    def coupled(self) -> bool:
        """True if statistics of the batch couple its samples."""
        return self.norm is not None and self.norm.coupled

    def modules(self) -> list[nn.Module]:
        """All, in order."""
        own = [None if self.op is None else self.op.module, None if self.norm is None else self.norm.module]
        leaves = [leaf.module for leaf in (*self.pre, *self.mid, *self.post)]
        return [*leaves, *(module for module in (*own, self.node) if module is not None)]

    def initial(self, v0: Any, a: int, b: int) -> Any:
        """The initial membrane of samples ``a:b``."""
        return v0[a:b] if isinstance(v0, Tensor) else v0


def chunks_of(x: Rows, chunks: int, grows: bool) -> Iterator[tuple[int, int, int, bool]]:
    """Number, first and end sample of every chunk, and whether it runs (see the module's docstring).

    Args:
        x: the layer's input.
        chunks: how many.
        grows: chunks leave tensors behind: the last one matters; otherwise they use some up, and the second does.
    """
    batch = x.shape[1]
    length = -(-batch // chunks)
    bounds = [(a, min(a + length, batch)) for a in range(0, batch, length)]
    few = lif_stream.valueless(x.payload)
    # The last may be shorter than all others: it runs, and of those that are alike the last before it.
    alike = batch // length
    telling = (0, alike - 1 if grows else 1, len(bounds) - 1 if alike < len(bounds) else 0)
    for index, (a, b) in enumerate(bounds):
        yield index, a, b, not few or index in telling


def before_neuron(unit: Unit, y: Tensor, affine: Affine | None, ours: bool) -> tuple[Tensor, Tensor, Affine | None]:
    """The neuron's input, room for its membranes, and what is still to be applied to the input.

    Args:
        unit: the layer.
        y: the convolution's output.
        affine: the normalisation.
        ours: ``y`` is used up.
    """
    if not unit.mid:
        return y, y if ours else torch.empty_like(y), affine
    z = run_leaves(unit.mid, normalised(y, affine))
    return z, z if ours else torch.empty_like(z), None


def normalised(y: Tensor, affine: Affine | None) -> Tensor:
    """A chunk after the normalisation, in memory of its own."""
    z = torch.empty_like(y)
    for t in lif_stream.steps(y):
        if affine is None:
            z[t].copy_(y[t])
        else:
            affine.into(y, t, z[t])
    return z
