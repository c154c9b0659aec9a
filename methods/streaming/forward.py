"""The forward of a streamed layer, in chunks over the batch: two passes where batch statistics couple the samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.contracts import listener
from methods.kernels import lif_stream
from methods.kernels.lif_stream import Affine
from methods.packing import RAW
from methods.streaming.norm import Moments
from methods.streaming.ops import run_leaves
from methods.streaming.rows import Rows
from methods.streaming.unit import Mode, Saved, Unit, before_neuron, chunks_of


class Forward:
    """One forward of a layer; see :mod:`methods.streaming.unit`.

    Args:
        unit: the layer.
        x: its input.
        mode: how it runs.
        width: bits an element of its output.
        amp: the dtype that autocast asks for, or None.
    """

    def __init__(self, unit: Unit, x: Rows, mode: Mode, width: int, amp: torch.dtype | None) -> None:
        self.unit, self.x, self.mode, self.width = unit, x, mode, width
        q = unit.node.w.detach().sigmoid() if hasattr(unit.node, "w") else None
        self.saved = Saved(q=q, v0=0.0 if unit.node is None else unit.node.v, amp=amp)
        self.bound = None if unit.op is None else unit.op.bound(amp)
        self.out: Rows | None = None

    def run(self) -> tuple[Rows, Saved]:
        """The output, and what the backward needs beside the input."""
        unit, mode, saved = self.unit, self.mode, self.saved
        if unit.coupled:
            self._measure(hold=mode.keep != "x" or mode.convs == 1)
        affine = self._affine()
        for index, a, b, runs in chunks_of(self.x, mode.chunks, grows=mode.keep == "u" or not unit.coupled):
            y = self._held(index, a, b, runs)
            if affine is None and unit.norm is not None:
                saved.statistics = unit.norm.statistics(None, y.dim())
                affine = self._affine()
            if runs:
                self._fire(index, a, b, y, affine)
            elif mode.keep == "u" and unit.node is not None:
                saved.us.append(torch.empty_like(saved.us[0]))  # type: ignore[arg-type]
            if mode.keep == "x" and saved.ys:
                saved.ys[index] = None
            del y
        if mode.keep == "x":
            saved.ys.clear()
        assert self.out is not None
        return self.out, saved

    def _measure(self, hold: bool) -> None:
        """The statistics of the whole batch, in two passes; ``hold``: the convolution's output stays for later ones."""
        unit, ys = self.unit, self.saved.ys
        assert unit.norm is not None
        moments = Moments(unit.norm.per_step, self.x.shape[1])
        y: Tensor | None = None
        for _, a, b, runs in chunks_of(self.x, self.mode.chunks, grows=True):
            if runs:
                y = None
                y = self._y(a, b)
                moments.add(y, a)
            elif hold:
                y = torch.empty_like(ys[0])  # type: ignore[arg-type]
            if hold:
                ys.append(y)
        assert y is not None
        dtype, dims = y.dtype, y.dim()
        del y
        if moments.centre(dtype):
            for index, a, b, runs in chunks_of(self.x, self.mode.chunks, grows=False):
                if runs:
                    held = ys[index] if hold else self._y(a, b)
                    assert held is not None
                    moments.spread(held)
                    del held
            moments.settle()
        self.saved.statistics = unit.norm.statistics(moments, dims)

    def _y(self, a: int, b: int) -> Tensor:
        h = run_leaves(self.unit.pre, self.x.read(a, b))
        return h if self.bound is None else self.bound.forward(h)

    def _held(self, index: int, a: int, b: int, runs: bool) -> Tensor:
        """The convolution's output of a chunk; one that nobody else holds, unless it is to be kept."""
        ys = self.saved.ys
        if self.unit.coupled and ys:
            held = ys[index]
            assert held is not None
            return held
        if not runs:
            y = torch.empty_like(ys[0]) if ys and ys[0] is not None else torch.empty(0)
        else:
            y = self._y(a, b)
            if self.bound is None and self.mode.keep == "x":
                y = y.clone()  # the membranes will take its memory, and a raw input is not ours
        if self.mode.keep != "x":
            ys.append(y)
        return y

    def _affine(self) -> Affine | None:
        found = self.saved.statistics
        return None if found is None or self.unit.norm is None else self.unit.norm.affine(found)

    def _fire(self, index: int, a: int, b: int, y: Tensor, affine: Affine | None) -> None:
        unit, saved = self.unit, self.saved
        if unit.neuron is None:
            assert affine is not None
            out = self._room(y.shape, y.dtype)
            for t in lif_stream.steps(y):
                affine.into(y, t, out.payload[t, a:b])
            return
        y, u, affine = before_neuron(unit, y, affine, ours=self.mode.keep == "x")
        v0 = unit.initial(saved.v0, a, b)
        if unit.post:
            lif_stream.charge_and_fire(y, u, affine, v0, saved.q, unit.neuron)
            s = lif_stream.fire(u, unit.neuron)
            self._tell(s, a)
            s = run_leaves(unit.post, s)
            self._room(s.shape, s.dtype).write(a, b, s)
        else:
            out = self._room(y.shape, y.dtype)
            if out.width == RAW:
                lif_stream.charge_and_fire(y, u, affine, v0, saved.q, unit.neuron, out.payload[:, a:b])
            elif out.width == 1 and out.by_kernel and lif_stream.fused(y):
                membranes = u if self.mode.keep == "u" else None
                lif_stream.fire_bits(y, membranes, affine, v0, saved.q, unit.neuron, out.payload[a:b])
            else:
                flat, view = out.codes(b - a)
                lif_stream.charge_and_fire(y, u, affine, v0, saved.q, unit.neuron, view)
                out.put(a, b, flat)
            self._tell(out, a, b)
        if self.mode.keep == "u":
            saved.us.append(u)

    def _tell(self, spikes: Tensor | Rows, a: int, b: int = 0) -> None:
        """Samples from ``a`` (of rows up to ``b``) to whoever records what neurons emit."""
        heard = listener(self.unit.node)
        if heard is not None and not lif_stream.valueless(self.x.payload):
            heard(spikes.read(a, b) if isinstance(spikes, Rows) else spikes, a)

    def _room(self, shape: Any, dtype: torch.dtype) -> Rows:
        if self.out is None:
            whole = (shape[0], self.x.shape[1], *shape[2:])
            self.out = Rows.empty(self.width, whole, dtype, self.x.payload.device)
        return self.out
