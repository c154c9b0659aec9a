"""The backward of a streamed layer, in chunks over the batch: two passes where batch statistics couple the samples."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.kernels import lif_stream
from methods.streaming.norm import Coupling
from methods.streaming.ops import Gradients, run_leaves
from methods.streaming.rows import Rows
from methods.streaming.unit import Mode, Saved, Unit, chunks_of, normalised


class Backward:
    """One backward of a layer; see :mod:`methods.streaming.unit`.

    Args:
        unit: the layer.
        x: its input.
        saved: from the forward; used up.
        mode: as in the forward.
        grad: of the output, ``[T, N, ...]``.
        owned: ``grad`` is nobody else's: its memory may be reused.
        grad_x: add the input's gradient to this one; None: make one.
        wanted: whether the input needs a gradient.
        into: takes the gradients of parameters.
    """

    def __init__(
        self, unit: Unit, x: Rows, saved: Saved, mode: Mode, grad: Tensor, owned: bool, grad_x: Tensor | None,
        wanted: bool, into: Gradients,
    ) -> None:  # fmt: skip
        self.unit, self.x, self.saved, self.mode, self.grad = unit, x, saved, mode, grad
        self.owned, self.grad_x, self.wanted, self.into = owned, grad_x, wanted, into
        self.bound = None if unit.op is None else unit.op.bound(saved.amp)
        found = saved.statistics
        self.affine = None if unit.norm is None or found is None else unit.norm.affine(found)
        self.coupling = None if unit.norm is None or found is None else Coupling(unit.norm, found)
        self.dzs: list[Tensor | None] = []
        self.grad_q: Tensor | None = None
        self.fresh = False
        self.in_place = owned and not unit.mid and not unit.post

    def run(self) -> Tensor | None:
        """Gradient of the input where it is wanted."""
        unit, mode, saved = self.unit, self.mode, self.saved
        if unit.coupled and self.coupling is not None:
            for index, a, b, runs in chunks_of(self.x, mode.chunks, grows=True):
                self._first(index, a, b, runs)
            self.coupling.settle()
        for index, a, b, runs in chunks_of(self.x, mode.chunks, grows=False):
            if runs:
                self._second(index, a, b)
            for held in (saved.ys, saved.us, self.dzs):
                if held:
                    held[index] = None
        self._finish()
        return self.grad_x

    def _first(self, index: int, a: int, b: int, runs: bool) -> None:
        """``dz`` of a chunk into the sums, and to where the second pass finds it."""
        hold = self.mode.back == "once" and self.mode.keep == "x"
        wait = self.unit.node is not None and self.mode.keep != "u" and self.mode.back != "all"
        if not runs:
            if hold:
                self.saved.ys.append(torch.empty_like(self.saved.ys[0]))  # type: ignore[arg-type]
            if wait and self.dzs:
                self.dzs.append(torch.empty_like(self.dzs[0]))  # type: ignore[arg-type]
            if self.mode.keep == "u" and self.saved.us:  # pooling before the neuron: dz is larger than the membranes
                self.saved.us[index] = torch.empty_like(self.saved.us[0])  # type: ignore[arg-type]
            return
        y = self._y(index, a, b)
        if hold:
            self.saved.ys.append(y)
        place = self.grad[:, a:b] if wait and self.in_place else None
        dz = self._dz(index, a, b, y, place)
        assert self.coupling is not None
        self.coupling.add(y, dz)
        if wait and not self.in_place:
            self.dzs.append(dz)
        elif self.mode.keep == "u" and self.saved.us:
            self.saved.us[index] = dz

    def _second(self, index: int, a: int, b: int) -> None:
        x = self.x.read(a, b)
        with torch.enable_grad():
            leaf = x.requires_grad_() if self.wanted and self.unit.pre else x
            h = run_leaves(self.unit.pre, leaf)
        y = self._y(index, a, b, h.detach())
        dz = self._waiting(index, a, b, y)
        if self.coupling is not None:
            if not self.unit.coupled:
                self.coupling.add(y, dz)
                self.coupling.settle()
            dy = self.coupling.through(y, dz)
        else:
            dy = dz
        del y, dz
        grad_h: Tensor | None = dy
        if self.bound is not None:
            grad_h = self.bound.backward(dy, h.detach(), self.wanted)
        del dy
        if self.wanted and grad_h is not None:
            if self.unit.pre:
                (grad_h,) = torch.autograd.grad(h, leaf, grad_h.to(h.dtype))
            del h
            self._put(a, b, grad_h)

    def _y(self, index: int, a: int, b: int, h: Tensor | None = None) -> Tensor:
        if self.saved.ys and index < len(self.saved.ys):
            held = self.saved.ys[index]
            assert held is not None
            return held
        if h is None:
            h = run_leaves(self.unit.pre, self.x.read(a, b))
        return h.clone() if self.bound is None else self.bound.forward(h)

    def _waiting(self, index: int, a: int, b: int, y: Tensor) -> Tensor:
        """``dz`` of a chunk for the second pass, contiguous and free to be used up."""
        if self.unit.neuron is None:
            grad = self.grad[:, a:b]
            return grad if self.owned and grad.dtype == y.dtype else grad.to(y.dtype, copy=True)
        if self.unit.coupled:
            if self.mode.keep == "u":
                dz = self.saved.us[index]
                assert dz is not None
                return dz
            if self.dzs:
                dz = self.dzs[index]
                assert dz is not None
                return dz
            if self.mode.back != "all":
                return self.grad[:, a:b]
        return self._dz(index, a, b, y, None, count=not self.unit.coupled)

    def _dz(self, index: int, a: int, b: int, y: Tensor, place: Tensor | None, count: bool = True) -> Tensor:
        """Gradient of the normalised convolution output, into ``place`` or memory of its own."""
        unit, saved = self.unit, self.saved
        if unit.neuron is None:
            return self.grad[:, a:b].to(y.dtype)
        v0 = unit.initial(saved.v0, a, b)
        z: Tensor | None = None
        given, affine = y, self.affine
        if unit.mid:
            z = normalised(y, affine).requires_grad_()
            with torch.enable_grad():
                pooled = run_leaves(unit.mid, z)
            given, affine = pooled.detach(), None
        u = saved.us[index] if saved.us else None
        if u is None:
            u = torch.empty_like(given)
            lif_stream.charge_and_fire(given, u, affine, v0, saved.q, unit.neuron)
        grad = self.grad[:, a:b]
        if unit.post:
            s = lif_stream.fire(u, unit.neuron).requires_grad_()
            with torch.enable_grad():
                out = run_leaves(unit.post, s)
            (grad,) = torch.autograd.grad(out, s, grad.contiguous())
            del out, s
        total = lif_stream.backward(grad, u, v0, saved.q, unit.neuron, into=place)
        if total is not None and count:
            self.grad_q = total if self.grad_q is None else self.grad_q + total
        dz = u if place is None else place
        if z is not None:
            (dz,) = torch.autograd.grad(pooled, z, dz)
        return dz

    def _put(self, a: int, b: int, grad: Tensor) -> None:
        if self.grad_x is None:
            shape, like = self.x.shape, self.grad
            same = tuple(like.shape) == shape and like.dtype == self.x.dtype
            fits = self.owned and same and like.is_contiguous()
            self.grad_x = like if fits else torch.empty(shape, dtype=self.x.dtype, device=like.device)
            self.fresh = True
        if self.fresh:
            self.grad_x[:, a:b] = grad
        else:
            self.grad_x[:, a:b] += grad

    def _finish(self) -> None:
        """Gradients of the parameters."""
        unit, into = self.unit, self.into
        if self.bound is not None:
            self.bound.settle(into)
        if self.coupling is not None and unit.norm is not None and unit.norm.module.weight is not None:
            gamma, beta = self.coupling.gradients()
            into.add(unit.norm.module.weight, gamma)
            into.add(unit.norm.module.bias, beta)
        if self.grad_q is not None and self.saved.q is not None:
            q = self.saved.q
            into.add(unit.node.w, self.grad_q * q * (1 - q))
