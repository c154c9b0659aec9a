"""A model's stages as modules, functions and sums of two values, in order.

Sequential containers are taken apart into their children, other modules through :mod:`methods.streaming.tracing`: what
their forward calls becomes nodes, and what it does in between becomes references to values in other shapes, or functions
of them (:mod:`methods.streaming.symbols`). A forward that does anything else leaves its module as one node.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

from spikingjelly.activation_based import base, layer
from torch import fx, nn

from methods.bptt_fused import FUSED
from methods.streaming import symbols
from methods.streaming.functions import Expr, Function, Ref
from methods.streaming.tracing import trace


@dataclass
class Node:
    """One module, function or addition of the graph.

    Args:
        name: of the module, or of the block that adds.
        module: it; None for an addition.
        reads: the values that it reads; a function names them itself.
        sequence: the module takes ``[T, N, ...]``; otherwise it is applied to ``[T N, ...]``.
    """

    name: str
    module: nn.Module | None
    reads: tuple[Ref, ...] = ()
    sequence: bool = True

    @property
    def inputs(self) -> tuple[int, ...]:
        """Numbers of the values."""
        return self.module.inputs if isinstance(self.module, Function) else tuple(ref.value for ref in self.reads)


class Graph:
    """Collects nodes; node ``i`` writes value ``i + 1``. ``asked`` are values whose shape some forward reads."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.asked: set[int] = set()

    def stage(self, name: str, module: nn.Module, ref: Ref) -> Ref:
        """Add a stage; a stateful module that would run twice in it makes it opaque."""
        mark = len(self.nodes)
        out = self.add(name, module, ref)
        parts = [n.module for n in self.nodes[mark:] if n.module is not None]
        runs = Counter(inner for part in parts for inner in part.modules() if isinstance(inner, base.MemoryModule))
        if any(count > 1 for count in runs.values()) or not _covered(module, parts) or out.merged:
            del self.nodes[mark:]
            return self.node(Node(name, module, (ref,)), None)
        return out

    def add(self, name: str, module: nn.Module, ref: Ref, sequence: bool = True) -> Ref:
        """Add a module behind a value; its output.

        Raises:
            symbols.Unknown: it keeps a state, and its input has no steps.
        """
        sequence = sequence and not ref.merged
        stateful = any(isinstance(part, base.MemoryModule) for part in module.modules())
        if hooked(module):
            if stateful and ref.merged:
                raise symbols.Unknown(name)
            return self.node(Node(name, module, (ref,), sequence), None)
        if type(module) is nn.Identity:
            return ref
        if type(module) is nn.Sequential or (type(module) is layer.SeqToANNContainer and sequence):
            inner = sequence and type(module) is nn.Sequential
            for child, part in module.named_children():
                ref = self.add(f"{name}.{child}", part, ref, inner)
            return ref
        inside = any(True for _ in module.children()) and not isinstance(module, base.MemoryModule)
        if inside and (sequence or ref.merged):
            out = self._traced(name, module, ref)
            if out is not None:
                return out
        if stateful and ref.merged:
            raise symbols.Unknown(name)
        return self.node(Node(name, module, (ref,), sequence), _rank(module, ref.rank))

    def node(self, node: Node, rank: int | None) -> Ref:
        """Add a node; its output, with the rank it has."""
        self.nodes.append(node)
        return Ref(len(self.nodes), rank, merged=any(ref.merged for ref in node.reads))

    def _traced(self, name: str, module: nn.Module, ref: Ref) -> Ref | None:
        """A block through ``torch.fx``; None where its forward is not a graph of modules, functions and additions."""
        graph = trace(module)
        if graph is None:
            return None
        mark = len(self.nodes)
        block = _Block(self, name, module, ref)
        try:
            for node in graph.nodes:
                block.step(node)
        except symbols.Unknown:
            del self.nodes[mark:]
            return None
        return block.out


class _Block:
    """Follows the graph of one block with symbolic values.

    Args:
        graph: takes the nodes.
        name: of the block.
        module: the block.
        ref: its input.
    """

    def __init__(self, graph: Graph, name: str, module: nn.Module, ref: Ref) -> None:
        self._graph, self._name, self._module, self._ref = graph, name, module, ref
        self._values: dict[fx.Node, Any] = {}
        self.out: Ref | None = None

    def step(self, node: fx.Node) -> None:
        """One node.

        Raises:
            symbols.Unknown: the block has to stay opaque.
        """
        if node.op == "placeholder":
            if self._values:
                raise symbols.Unknown("a second input")
            self._values[node] = self._ref
        elif node.op == "output":
            self.out = self._settled(self._only(node))
        elif node.op == "call_module":
            part = self._module.get_submodule(str(node.target))
            self._values[node] = self._graph.add(f"{self._name}.{node.target}", part, self._settled(self._only(node)))
        elif node.op in ("call_function", "call_method"):
            self._values[node] = self._called(node)
        else:
            raise symbols.Unknown(node.op)

    def _only(self, node: fx.Node) -> fx.Node:
        if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
            raise symbols.Unknown(str(node.target))
        return node.args[0]

    def _called(self, node: fx.Node) -> Any:
        name = symbols.name_of(node)
        if node.target in (operator.iadd, operator.imul, operator.isub, operator.itruediv):
            # `x += y` is a sum like others, unless somebody sees the old name change.
            old = node.args[0]
            if isinstance(old, fx.Node) and any(user is not node and user not in self._values for user in old.users):
                raise symbols.Unknown(name)
        args: Any = fx.node.map_arg(node.args, lambda arg: self._values[arg])
        if node.target is getattr:
            args = args[:1]
        kwargs: Any = fx.node.map_arg(node.kwargs, lambda arg: self._values[arg])
        if name == "add" and not kwargs and len(args) == 2 and all(isinstance(arg, (Ref, Expr)) for arg in args):
            exprs = [arg for arg in args if isinstance(arg, Expr)]
            if not exprs or args[0].rank is None or args[0].rank != args[1].rank:
                reads = tuple(self._settled(arg) for arg in node.args)
                if reads[0].merged != reads[1].merged:
                    raise symbols.Unknown(name)
                ranks = {ref.rank for ref in reads} - {None}
                return self._graph.node(Node(self._name, None, reads), ranks.pop() if len(ranks) == 1 else None)
        if name == "flatten" and args[1:] == (0, 1) and isinstance(args[0], Expr):
            args = (self._settled(node.args[0]), 0, 1)
        if symbols.harmless(name):
            return None
        if name in ("shape", "size") and isinstance(args[0], Ref):
            self._graph.asked.add(args[0].value)
        return symbols.apply(name, tuple(args), dict(kwargs))

    def _settled(self, node: Any) -> Ref:
        """A node's result as a value of the program."""
        found = self._values[node]
        if isinstance(found, Expr) and not found.parts:
            function = Function(found)
            found = self._values[node] = self._graph.node(Node(self._name, function), function.rank)
        if not isinstance(found, Ref):
            raise symbols.Unknown(str(node))
        return found


_RANKS = {
    4: (nn.Conv1d, nn.AvgPool1d, nn.MaxPool1d), 5: (nn.Conv2d, nn.BatchNorm2d, nn.AvgPool2d, nn.MaxPool2d),
    6: (nn.Conv3d, nn.BatchNorm3d, nn.AvgPool3d, nn.MaxPool3d),
}  # fmt: skip
_KEEP = (nn.Linear, nn.BatchNorm1d, *FUSED)


def _rank(module: nn.Module, rank: int | None) -> int | None:
    """Dimensions of a module's output ``[T, N, ...]``, where its kind tells."""
    if isinstance(module, _KEEP):
        return rank
    return next((found for found, kinds in _RANKS.items() if isinstance(module, kinds)), None)


def _covered(stage: nn.Module, parts: list[nn.Module]) -> bool:
    """True if the parts hold all parameters of the stage; a block that uses some directly is opaque."""
    inside = {p for part in parts for p in part.parameters()}
    return all(p in inside for p in stage.parameters())


def hooked(module: nn.Module) -> bool:
    """True if somebody listens to a module's calls, who would not hear of chunks."""
    tables = (
        module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks,
    )  # fmt: skip
    return any(tables)
