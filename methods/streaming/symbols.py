"""The operators between modules, on symbolic values: which of them leave steps and samples alone.

A block's graph is followed with the rank of every tensor. An operator is known if it provably treats the two leading
dimensions, steps and samples, as a batch: it names only dimensions behind them, or it reads their sizes off a value and
puts them in front again. Nothing is tried out, and nothing depends on the shape of a batch. Tensors whose two leading
dimensions were merged (``x.flatten(0, 1)``, for layers that know no steps) are followed until they are taken apart.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from methods.streaming.functions import Expr, Extent, Number, Ref, Shape, Sizes, View


class Unknown(Exception):
    """An operator that is not known to leave steps and samples alone."""


def apply(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A graph's operator on symbolic values.

    Args:
        name: as a method of :class:`torch.Tensor`, ``shape`` or ``getitem``.
        args: its arguments.
        kwargs: likewise.

    Raises:
        Unknown: it may mix steps or samples, or nothing is known about it.
    """
    tensor = args[0] if args else None
    if name in _NUMBERS and all(isinstance(arg, (Number, int)) for arg in args):
        return _counted(name, args)
    if isinstance(tensor, Extent) and name == "getitem" and isinstance(args[1], int):
        return _dimension(tensor.ref, args[1])
    if isinstance(tensor, Ref) and name in ("shape", "size"):
        return Extent(tensor) if len(args) == 1 else _dimension(tensor, args[1])
    if any(isinstance(arg, Ref) and arg.merged for arg in args):
        return _merged(name, args, kwargs)
    if name in _SCALED and not isinstance(tensor, (Ref, Expr)):
        args = args[::-1] if name in ("mul", "add") else ()
        tensor = args[0] if args else None
    if not isinstance(tensor, (Ref, Expr)) or name not in _RULES or (tensor_parts(tensor) and name != "getitem"):
        raise Unknown(name)
    return _RULES[name](name, args, kwargs)


def name_of(node: fx.Node) -> str:
    """A graph's operator as :func:`apply` names it."""
    if node.op == "call_method":
        name = str(node.target)
    elif node.target is getattr:
        name = str(node.args[1])
    else:
        name = getattr(node.target, "__name__", "")
        if all(getattr(module, name, None) is not node.target for module in (operator, torch)):
            return "?"  # somebody's own function
    return _ALIASES.get(name, name)


def harmless(name: str) -> bool:
    """True for what reads no values: in a graph whose checks are answered, nobody needs it."""
    return name in ("ndim", "dim", "dtype", "device", "is_cuda", "eq", "ne", "lt", "le", "gt", "ge")


def tensor_parts(x: Ref | Expr) -> bool:
    """True for a tuple of tensors."""
    return isinstance(x, Expr) and x.parts


# Symbolic integers ---------------------------------------------------------------------------------------------------

_NUMBERS: dict[str, Callable[[int, int], int]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "floordiv": operator.floordiv, "mod": operator.mod,
}  # fmt: skip


def _counted(name: str, args: tuple[Any, ...]) -> Number:
    one, two = (arg.at if isinstance(arg, Number) else (lambda _, known=arg: known) for arg in args)
    return Number(lambda sizes: _NUMBERS[name](one(sizes), two(sizes)))


def _dimension(ref: Ref, index: int) -> Number:
    if ref.merged:
        if index == 0:
            return Number(lambda sizes: ref.shape(sizes)[0] * ref.shape(sizes)[1])
        return Number(lambda sizes: ref.shape(sizes)[index + (index > 0)])
    return Number(lambda sizes: ref.shape(sizes)[index], index if index in (0, 1) else None)


# Operators: each returns its result, or raises Unknown ---------------------------------------------------------------


def _plain(dim: Any, rank: int | None) -> int:
    """A dimension behind steps and samples, counted from the front."""
    if not isinstance(dim, int) or (dim < 0 and rank is None):
        raise Unknown("dimension")
    found = dim + (rank or 0) if dim < 0 else dim
    if found < 2:
        raise Unknown("dimension")
    return found


def _get(position: int, key: str, args: tuple[Any, ...], kwargs: dict[str, Any], default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(key, default)


def _same(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0]


def _flatten(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    start, end = _get(1, "start_dim", args, kwargs, 0), _get(2, "end_dim", args, kwargs, -1)
    if (start, end) == (0, 1) and isinstance(x, Ref):
        return replace(x, merged=True)
    start = _plain(start, x.rank)
    end = None if end == -1 else _plain(end, x.rank)
    rank = start + 1 if end is None else None if x.rank is None else x.rank - (end - start)

    def view(shape: Shape, _: Sizes) -> Shape:
        stop = len(shape) if end is None else end + 1
        return (*shape[:start], _product(shape[start:stop]), *shape[stop:]) if start < len(shape) else shape

    return _viewed(x, view, rank, Expr("flatten", (x, start, -1 if end is None else end), {}, rank))


def _reshape(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, *wanted = args
    if kwargs:
        raise Unknown(name)
    if len(wanted) == 1 and isinstance(wanted[0], Extent):
        ref = wanted[0].ref
        return _viewed(x, lambda _, sizes: ref.shape(sizes), ref.rank, None)
    if len(wanted) == 1 and isinstance(wanted[0], (tuple, list)):
        wanted = list(wanted[0])
    leads = [d.lead if isinstance(d, Number) else None for d in wanted[:2]]
    if leads != [0, 1] or not all(isinstance(d, (Number, int)) for d in wanted):
        raise Unknown(name)

    def view(shape: Shape, sizes: Sizes) -> Shape:
        new = [d.at(sizes) if isinstance(d, Number) else d for d in wanted]
        if -1 in new:
            known = _product([d for d in new if d != -1])
            new[new.index(-1)] = _product(shape) // known
        return tuple(new)

    return _viewed(x, view, len(wanted), Expr("reshape", (x, *wanted), {}, len(wanted)))


def _merged(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Of a value whose steps and samples are one dimension."""
    x = args[0]
    if not isinstance(x, Ref) or any(isinstance(a, Extent) and a.ref.merged for a in args):
        raise Unknown(name)
    apart = replace(x, merged=False)
    if name == "contiguous":
        return x
    if name == "reshape":
        return _reshape(name, (apart, *args[1:]), kwargs)
    if name == "unflatten" and not kwargs and len(args) == 3 and args[1] == 0 and isinstance(args[2], (tuple, list)):
        leads = [d.lead if isinstance(d, Number) else None for d in args[2]]
        return _apart(apart, leads)
    if name == "flatten" and not kwargs and 1 < len(args) < 4 and args[1] > 0:
        end = args[2] if len(args) == 3 else -1
        return replace(_flatten(name, (apart, args[1] + 1, end if end < 0 else end + 1), {}), merged=True)
    raise Unknown(name)


def _apart(ref: Ref, leads: list[int | None]) -> Ref:
    if leads != [0, 1]:
        raise Unknown("unflatten")
    return ref


def _viewed(x: Ref | Expr, view: View, rank: int | None, expr: Expr | None) -> Ref | Expr:
    if isinstance(x, Ref):
        return Ref(x.value, rank, (*x.views, view))
    if expr is None:
        raise Unknown("reshape")
    return expr


def _product(lengths: Any) -> int:
    count = 1
    for length in lengths:
        count *= length
    return count


def _transpose(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    dims = [_plain(_get(1 + i, f"dim{i}", args, kwargs), x.rank) for i in range(2)]
    return Expr("transpose", (x, *dims), {}, x.rank)


def _permute(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, *dims = args
    if len(dims) == 1 and isinstance(dims[0], (tuple, list)):
        dims = list(dims[0])
    if dims[:2] != [0, 1]:
        raise Unknown(name)
    return Expr("permute", (x, 0, 1, *(_plain(d, len(dims)) for d in dims[2:])), {}, len(dims))


def _chunk(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, count = args[0], _get(1, "chunks", args, kwargs)
    return Expr("chunk", (x, count, _plain(_get(2, "dim", args, kwargs, 0), x.rank)), {}, x.rank, parts=True)


def _getitem(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, index = args
    if not tensor_parts(x) or not isinstance(index, int):
        raise Unknown(name)
    return Expr("getitem", (x, index), {}, x.rank)


def _reduce(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, dims, keep = args[0], _get(1, "dim", args, kwargs), _get(2, "keepdim", args, kwargs, False)
    if not isinstance(keep, bool) or kwargs.keys() - {"dim", "keepdim"} or len(args) > 3:
        raise Unknown(name)
    many = [dims] if isinstance(dims, int) else list(dims or ())
    if not many:
        raise Unknown(name)
    plain = [_plain(d, x.rank) for d in many]
    rank = x.rank if keep or x.rank is None else x.rank - len(plain)
    return Expr(name, (x, plain), {"keepdim": keep}, rank)


def _unsqueeze(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    if x.rank is None:
        raise Unknown(name)
    return Expr(name, (x, _plain(_get(1, "dim", args, kwargs), x.rank + 1)), {}, x.rank + 1)


def _scaled(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """With a number, or with a tensor of the same rank: then steps meet steps, and samples samples."""
    x, other = args
    if kwargs or isinstance(other, bool):
        raise Unknown(name)
    if isinstance(other, (int, float)):
        return Expr(name, (x, other), {}, x.rank)
    if not isinstance(other, (Ref, Expr)) or tensor_parts(other) or x.rank is None or x.rank != other.rank:
        raise Unknown(name)
    return Expr(name, (x, other), {}, x.rank)


def _matmul(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, other = args
    if not isinstance(other, (Ref, Expr)) or tensor_parts(other) or x.rank != other.rank or (x.rank or 0) < 4:
        raise Unknown(name)
    return Expr("matmul", (x, other), {}, x.rank)


_ALIASES = {
    "truediv": "div",
    "view": "reshape",
    "imul": "mul",
    "iadd": "add",
    "isub": "sub",
    "itruediv": "div",
    "swapaxes": "transpose",
}
_SCALED = ("mul", "add", "sub", "div")
_RULES: dict[str, Callable[[str, tuple[Any, ...], dict[str, Any]], Any]] = {
    "contiguous": _same, "flatten": _flatten, "reshape": _reshape, "transpose": _transpose, "permute": _permute,
    "chunk": _chunk, "getitem": _getitem, "sum": _reduce, "mean": _reduce, "unsqueeze": _unsqueeze, "matmul": _matmul,
    **dict.fromkeys(_SCALED, _scaled),
}  # fmt: skip
