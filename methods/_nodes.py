"""A stage's calls as a flat list of nodes: what its containers hold, and what its blocks' forwards do (``torch.fx``).

A block stays one node where its forward is no graph of calls of its children and of functions that change nothing and
draw nothing, or where somebody listens to its calls; see :mod:`methods._program`.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import base
from torch import fx, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx.node import map_aggregate

from methods.streaming.graph import hooked
from methods.streaming.tracing import trace
from methods.widths import VIEWS, Bound, called_bound, output_bound

INPUT = 0
"""Number of the value that a stage reads; node ``i`` of its program writes value ``i + 1``."""
ADDING = (operator.add, torch.add, "add")
_VIEWING = ("flatten", "unflatten", "reshape", "view", "unsqueeze", "squeeze", "transpose", "permute", "contiguous")
_TELLING = ("shape", "ndim", "dtype", "device", "size", "dim", "numel", "is_cuda", "is_floating_point")
"""What is read off a tensor and is none."""
_FUNCTIONS = (operator, torch, torch.nn.functional)
"""Where functions come from that are known to change nothing and to draw nothing; ``dropout`` and its like do."""
_DRAWING = ("rand", "drop", "bernoulli", "multinomial", "poisson", "rrelu", "gumbel")


@dataclass(frozen=True)
class Value:
    """A value of the program, in the arguments of a node."""

    number: int


@dataclass(frozen=True, eq=False)
class Node:
    """One call.

    Args:
        out: number of the value that it writes.
        target: a module, a function, or the name of a method of the first argument.
        args: arguments; values are :class:`Value`.
        kwargs: likewise.
        told: its result is no tensor.
    """

    out: int
    target: nn.Module | Callable[..., Any] | str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    told: bool = False

    @property
    def reads(self) -> tuple[int, ...]:
        """Numbers of the values that it reads, each once."""
        found: dict[int, None] = {}
        mapped((self.args, self.kwargs), lambda a: found.update({a.number: None}) if is_value(a) else None)
        return tuple(found)

    @property
    def sums(self) -> bool:
        """True if it adds two tensors; there is nothing to keep for its backward."""
        return self.target in ADDING and len(self.reads) == 2 and not self.kwargs

    @property
    def views(self) -> bool:
        """True if it only gives a value another shape."""
        return isinstance(self.target, VIEWS) or name_of(self.target) in _VIEWING

    def run(self, values: dict[int, Any]) -> Any:
        """Call it."""
        args, kwargs = mapped((self.args, self.kwargs), lambda a: values[a.number] if is_value(a) else a)
        if isinstance(self.target, str):
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)

    def bound(self, bounds: dict[int, Bound]) -> Bound:
        """Largest value that it emits, from those that it reads (:mod:`methods.widths`)."""
        given = [bounds[number] for number in self.reads]
        if isinstance(self.target, nn.Module):
            return output_bound(self.target, given[0] if len(given) == 1 else None)
        operands = [bounds[arg.number] if isinstance(arg, Value) else arg for arg in self.args]
        if self.target is operator.sub and self.args[0] == 1 and given[0] is not None and given[0] <= 1:
            return 1.0  # of spikes: x * (1 - y) joins the branches of a SEW block
        return given[0] if self.views else called_bound(name_of(self.target), operands)


class Flat:
    """Collects the nodes of a stage.

    Args:
        deep: take blocks apart, not only containers.
    """

    def __init__(self, deep: bool = True) -> None:
        self.nodes: list[Node] = []
        self.facts: list[tuple[nn.Module, Any]] = []
        self._deep = deep

    def stage(self, stage: nn.Module) -> bool:
        """Add a stage; False where what it returns is not its last value, or a stateful module would run twice."""
        out = self._add(stage, Value(INPUT), inside=False)
        counts: dict[nn.Module, int] = {}
        for node in self.nodes:
            for inner in node.target.modules() if isinstance(node.target, nn.Module) else ():
                counts[inner] = counts.get(inner, 0) + isinstance(inner, base.MemoryModule)
        return bool(self.nodes) and out.number == self.nodes[-1].out and all(count < 2 for count in counts.values())

    def _add(self, module: nn.Module, value: Value, inside: bool) -> Value:
        """A module behind a value; its output."""
        if type(module) is nn.Identity and inside and not hooked(module):
            return value
        if type(module) is nn.Sequential and len(module) and not (inside and hooked(module)):
            for child in module:
                value = self._add(child, value, inside)
            return value
        block = self._deep and not isinstance(module, base.MemoryModule) and any(True for _ in module.children())
        if block and not hooked(module) and not any(getattr(m, "inplace", False) for m in module.modules()):
            out = self._block(module, value)
            if out is not None:
                return out
        return self._node(module, (value,), {})

    def _node(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], told: bool = False) -> Value:
        self.nodes.append(Node(len(self.nodes) + 1, target, args, kwargs, told))
        return Value(len(self.nodes))

    def _block(self, module: nn.Module, value: Value) -> Value | None:
        graph = _traced(module)
        if graph is None:
            return None
        nodes, facts, found = len(self.nodes), len(self.facts), dict[fx.Node, Value]()
        out = None
        try:
            for node in graph.nodes:
                if node.op == "placeholder" and not found:
                    found[node] = value
                elif node.op == "output":
                    (given,) = node.args
                    out = found[given] if isinstance(given, fx.Node) else None
                else:
                    found[node] = self._call(module, node, found)
        except (_OpaqueError, KeyError, TypeError):
            out = None
        if out is None or len(self.nodes) == nodes or self._told(out):
            del self.nodes[nodes:], self.facts[facts:]
            return None
        self.facts.append((module, facts_of(module)))
        return out

    def _call(self, module: nn.Module, node: fx.Node, found: dict[fx.Node, Value]) -> Value:
        args = _found(node.args, found)
        kwargs = _found(node.kwargs, found)
        if node.op == "call_module":
            child = module.get_submodule(str(node.target))
            if len(args) == 1 and not kwargs and isinstance(args[0], Value):
                return self._add(child, args[0], inside=True)
            return self._node(child, args, kwargs)
        target: Any = node.target
        if node.op not in ("call_function", "call_method") or not _known(target, kwargs):
            raise _OpaqueError
        name = str(args[1]) if target is getattr else name_of(target)
        told = self._all_told(args, kwargs) or name in _TELLING
        if target is getattr and name not in _TELLING:
            raise _OpaqueError
        return self._node(target, tuple(args), dict(kwargs), told)

    def _told(self, value: Value) -> bool:
        return value.number != INPUT and self.nodes[value.number - 1].told

    def _all_told(self, args: Any, kwargs: Any) -> bool:
        read: list[Value] = []
        mapped((args, kwargs), lambda a: read.append(a) if is_value(a) else None)
        if not read:
            raise _OpaqueError  # a tensor from nowhere
        return all(self._told(value) for value in read)


class _OpaqueError(Exception):
    """A block stays one step."""


def _traced(module: nn.Module) -> fx.Graph | None:
    """The graph of a block without what nobody reads; None if it draws random numbers, which a graph has drawn."""
    with unset_fake_temporarily():
        before = _random_states()
        graph = trace(module)
        if _random_states() != before:
            graph = None
            torch.set_rng_state(torch.frombuffer(bytearray(before[0]), dtype=torch.uint8))
            random.setstate(before[1])
            np.random.set_state(before[2])
    if graph is None:
        return None
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "call_method") and not node.users:
            graph.erase_node(node)
    return graph


def _random_states() -> tuple[bytes, Any, Any]:
    state: Any = np.random.get_state(legacy=True)
    kind, keys, *rest = state
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), (kind, keys.tolist(), *rest)


def _known(target: Any, kwargs: dict[str, Any]) -> bool:
    """True for functions and methods that change no tensor in place and draw no random numbers."""
    name = name_of(target)
    if name.endswith("_") or any(part in name for part in _DRAWING) or kwargs.get("inplace") or "out" in kwargs:
        return False
    if isinstance(target, str) or target is getattr:
        return True
    if getattr(operator, f"__{name}__", None) is target and name.startswith("i") and name[1:] in vars(operator):
        return False
    return any(getattr(place, name, None) is target for place in _FUNCTIONS)


def _found(args: Any, found: dict[fx.Node, Value]) -> Any:
    mapping: Any = fx.node.map_arg
    return mapping(args, lambda node: found[node])


def facts_of(block: nn.Module) -> Any:
    """What a forward may read off its module that is no tensor."""
    plain = (bool, int, float, str, type(None))
    told = {key: value for key, value in vars(block).items() if isinstance(value, plain)}
    lists = {key: repr(value) for key, value in vars(block).items() if isinstance(value, (tuple, list))}
    return told, lists, dict(block._modules), hooked(block)


def name_of(target: Any) -> str:
    """What a function or method is called."""
    return target if isinstance(target, str) else getattr(target, "__name__", "?")


def is_value(arg: Any) -> bool:
    """True for a value in the arguments of a node."""
    return isinstance(arg, Value)


def mapped(args: Any, change: Callable[[Any], Any]) -> Any:
    """Arguments with every leaf changed."""
    mapping: Any = map_aggregate
    return mapping(args, change)
