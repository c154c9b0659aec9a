"""Functions between modules: reshaped tokens, and the products of spiking attention.

* What keeps the order of elements (``flatten``, ``reshape``) of a value costs nothing: a :class:`Ref` is a value in
  another shape, its packed bits are the same;
* other operators become a :class:`Function` of one or more values, in front of the neuron or the weights that read it.
  It is recomputed in chunks over the batch like everything in a streamed layer: ``s = neuron(scale (v k^T) q)`` keeps
  the packed spikes of ``q``, ``k`` and ``v`` alone.

Sizes that a forward reads off its tensors (``T, N, C, L = x.shape``) stay symbolic, so that a chunk has its own.
:mod:`methods.streaming.symbols` has the operators that are known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
Sizes = Mapping[int, Shape]
"""Shape ``[T, N, ...]`` of every value."""
View = Callable[[Shape, Sizes], Shape]


@dataclass(frozen=True)
class Number:
    """A symbolic integer.

    Args:
        at: its value.
        lead: 0 if it is the number of steps, 1 if that of samples.
    """

    at: Callable[[Sizes], int]
    lead: int | None = None


@dataclass(frozen=True)
class Ref:
    """A value of the program, possibly in another shape.

    Args:
        value: its number.
        rank: number of dimensions; None if not known.
        views: what gives it its shape, in order.
        merged: for whom reads it, the two leading dimensions are one; shape and rank are still those of ``[T, N, ...]``.
    """

    value: int
    rank: int | None = None
    views: tuple[View, ...] = ()
    merged: bool = False

    def shape(self, sizes: Sizes) -> Shape:
        """``[T, N, ...]``."""
        shape = sizes[self.value]
        for view in self.views:
            shape = view(shape, sizes)
        return shape


@dataclass(frozen=True)
class Extent:
    """The shape of a value, as a forward reads it."""

    ref: Ref


@dataclass(frozen=True, eq=False)
class Expr:
    """An operator's result that is no value of the program.

    Args:
        name: of the method of :class:`torch.Tensor`; ``getitem`` picks a part.
        args: expressions, values, symbolic integers and constants.
        kwargs: constants.
        rank: of the result; of each part where it has parts.
        parts: the result is a tuple.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    rank: int | None = None
    parts: bool = False


class Function(nn.Module):
    """An expression of values, without parameters.

    Args:
        expr: the expression.
    """

    def __init__(self, expr: Expr) -> None:
        super().__init__()
        self.rank = expr.rank
        self._order = list(_ordered(expr, {}))
        refs = [arg for node in self._order for arg in _flat(node.args) if isinstance(arg, Ref)]
        self.inputs = tuple(dict.fromkeys(ref.value for ref in refs))

    def extra_repr(self) -> str:
        """Its operators."""
        return " ".join(node.name for node in self._order)

    def facts(self, sizes: Sizes) -> tuple[str, ...]:
        """Equal for functions that do the same."""
        at = {node: index for index, node in enumerate(self._order)}
        place = {value: index for index, value in enumerate(self.inputs)}

        def told(arg: Any) -> Any:
            if isinstance(arg, Expr):
                return f"%{at[arg]}"
            if isinstance(arg, Ref):
                return place[arg.value], arg.shape(sizes)
            return arg.at(sizes) if isinstance(arg, Number) else arg

        return tuple(repr((n.name, _mapped(n.args, told), sorted(n.kwargs.items()))) for n in self._order)

    def bound(self, sizes: Sizes, amp: torch.dtype | None) -> Bound:
        """With the shapes of a batch; ``amp`` is the dtype that autocast asks for."""
        return Bound(self, sizes, amp)

    def compute(self, inputs: list[Tensor], sizes: Sizes, amp: torch.dtype | None) -> Tensor:
        """The expression of ``inputs``, in the order of :attr:`inputs`."""
        given = dict(zip(self.inputs, inputs, strict=True))
        found: dict[Expr, Any] = {}

        def value(arg: Any) -> Any:
            if isinstance(arg, Expr):
                return found[arg]
            if isinstance(arg, Ref):
                return given[arg.value].reshape(arg.shape(sizes))
            return arg.at(sizes) if isinstance(arg, Number) else arg

        for node in self._order:
            args = _mapped(node.args, value)
            if node.name == "getitem":
                found[node] = args[0][args[1]]
                continue
            if node.name == "matmul" and amp is not None and args[0].is_meta:  # knows no autocast
                args = tuple(arg.to(amp) for arg in args)
            found[node] = getattr(torch.Tensor, node.name)(*args, **node.kwargs)
        out: Tensor = found[self._order[-1]]
        return out


class Bound(nn.Module):
    """A function with the shapes of a batch; takes its only input, or all as :class:`Joined` gives them.

    Args:
        function: it.
        sizes: of all values that it names, for the whole batch.
        amp: the dtype that autocast asks for, or None.
    """

    def __init__(self, function: Function, sizes: Sizes, amp: torch.dtype | None) -> None:
        super().__init__()
        self._function, self._sizes, self._amp = function, sizes, amp

    def forward(self, x: Tensor) -> Tensor:
        """Of ``n`` samples, ``[T, n, ...]``."""
        sizes = {value: (x.shape[0], x.shape[1], *shape[2:]) for value, shape in self._sizes.items()}
        inputs = [x]
        if len(self._function.inputs) > 1:
            shapes = [sizes[value] for value in self._function.inputs]
            parts = x.split([_elements(shape) for shape in shapes], dim=2)
            inputs = [part.unflatten(2, shape[2:]) for part, shape in zip(parts, shapes, strict=True)]
        with _autocast(x, self._amp):
            return self._function.compute(inputs, sizes, self._amp)


class Reshaped(nn.Module):
    """Views inside a unit, in front of pooling.

    Args:
        views: they.
        sizes: of all values, for the whole batch; None where it is not bound.
    """

    def __init__(self, views: tuple[View, ...], sizes: Sizes | None = None) -> None:
        super().__init__()
        self._views, self._sizes = views, sizes

    def bound(self, sizes: Sizes) -> Reshaped:
        """With the shapes of a batch."""
        return Reshaped(self._views, sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Of ``n`` samples, ``[T, n, ...]``."""
        assert self._sizes is not None
        sizes = {value: (x.shape[0], x.shape[1], *shape[2:]) for value, shape in self._sizes.items()}
        shape = tuple(x.shape)
        for view in self._views:
            shape = view(shape, sizes)
        return x.reshape(shape)


class Joined:
    """Several values read as one, ``[T, n, sum of their elements]``; in place of :class:`~methods.streaming.rows.Rows`.

    Args:
        parts: the values as they are kept.
    """

    is_raw = False

    def __init__(self, parts: list[Any]) -> None:
        self._parts, self.payload = parts, parts[0].payload
        first = parts[0].shape
        self.shape = (first[0], first[1], sum(_elements(part.shape) for part in parts))
        self.dtype = parts[0].dtype
        for part in parts:
            self.dtype = torch.promote_types(self.dtype, part.dtype)

    def read(self, a: int, b: int) -> Tensor:
        """Samples ``a:b``."""
        return torch.cat([part.read(a, b).flatten(2).to(self.dtype) for part in self._parts], dim=2)


class Slots:
    """The gradient of a :class:`Joined` input: what is added to it goes to the gradients of its values.

    Args:
        shapes: of the values.
        grads: their gradients, contiguous, ``[T, N, ...]`` in any shape; None where none is wanted.
    """

    def __init__(self, shapes: list[Shape], grads: list[Tensor | None]) -> None:
        self._lengths = [_elements(shape) for shape in shapes]
        self._grads = [None if g is None else g.view(*shape[:2], -1) for shape, g in zip(shapes, grads, strict=True)]

    def add_(self, grad: Tensor) -> Slots:
        """Of the whole batch."""
        self[:, : grad.shape[1]] += grad
        return self

    def __getitem__(self, key: tuple[slice, slice]) -> _Samples:
        return _Samples(self, key)

    def __setitem__(self, key: tuple[slice, slice], value: object) -> None:
        """The end of ``slots[:, a:b] += grad``, which is done by then."""

    def parts(self, key: tuple[slice, slice], grad: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Gradients of samples, and what is added to each."""
        for mine, part in zip(self._grads, grad.split(self._lengths, dim=2), strict=True):
            if mine is not None:
                yield mine[key], part


class _Samples:
    def __init__(self, slots: Slots, key: tuple[slice, slice]) -> None:
        self._slots, self._key = slots, key

    def __iadd__(self, grad: Tensor) -> _Samples:
        for mine, part in self._slots.parts(self._key, grad):
            mine += part
        return self


def _ordered(expr: Expr, seen: dict[Expr, None]) -> Iterator[Expr]:
    for arg in _flat(expr.args):
        if isinstance(arg, Expr) and arg not in seen:
            yield from _ordered(arg, seen)
    seen[expr] = None
    yield expr


def _flat(args: Any) -> Iterator[Any]:
    for arg in args:
        if isinstance(arg, (tuple, list)):
            yield from _flat(arg)
        else:
            yield arg


def _mapped(args: Any, change: Callable[[Any], Any]) -> tuple[Any, ...]:
    return tuple(_mapped(arg, change) if isinstance(arg, (tuple, list)) else change(arg) for arg in args)


def _elements(shape: Shape) -> int:
    count = 1
    for length in shape[2:]:
        count *= length
    return count


def _autocast(x: Tensor, amp: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    if x.is_meta:
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, dtype=amp, enabled=amp is not None, cache_enabled=False)
