"""A model's stages as a straight-line program of streamed layers, additions and opaque modules.

Stages are taken apart into their children, and blocks through ``torch.fx``, whatever class they have: a residual block
of SEW-ResNet and one that a user wrote are the same graph. In the graph, the longest chains ``pooling or views* -
convolution or linear - batch normalisation? - pooling* - neuron - max pooling*`` become units
(:mod:`methods.streaming.unit`), sums of two values become additions; everything else is opaque and runs as one
checkpointed piece. A stage in which a stateful module runs twice is opaque as a whole.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from spikingjelly.activation_based import base, layer
from torch import fx, nn

from harness.contracts import StagedModel
from methods.bptt_fused import FUSED, constants, unfusable
from methods.streaming.norm import Norm, classify
from methods.streaming.ops import Leaf, Op
from methods.streaming.unit import Unit
from methods.widths import VIEWS

_POOLS = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
_MAX = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.Identity,
)  # fmt: skip
_WRAPPED = {getattr(layer, kind.__name__): kind for kind in (*_POOLS, nn.Flatten) if hasattr(layer, kind.__name__)}
"""SpikingJelly's layers that do the same on a sequence."""

Kind = Literal["unit", "add", "call"]


@dataclass
class Node:
    """One module or addition of the graph.

    Args:
        name: of the module, or of the block that adds.
        module: it; None for an addition.
        inputs: numbers of the values that it reads.
        sequence: the module takes ``[T, N, ...]``; otherwise it is applied to ``[T N, ...]``.
    """

    name: str
    module: nn.Module | None
    inputs: tuple[int, ...]
    sequence: bool = True


@dataclass
class Step:
    """One instruction; it writes value number ``out``.

    Args:
        kind: ``unit``, ``add`` or ``call`` (an opaque module).
        name: of its first module.
        inputs: numbers of the values that it reads; 0 is the network's input.
        out: number of the value that it writes.
        unit: of a unit.
        module: of a call.
        why: of a call: why it is opaque.
    """

    kind: Kind
    name: str
    inputs: tuple[int, ...]
    out: int
    unit: Unit | None = None
    module: nn.Module | None = None
    why: str = ""

    def modules(self) -> list[nn.Module]:
        """All modules that it runs."""
        if self.unit is not None:
            return self.unit.modules()
        return [] if self.module is None else [self.module]


@dataclass
class Program:
    """Steps in order, and the number of the value that leaves the last stage."""

    steps: list[Step] = field(default_factory=list)
    out: int = 0

    def parameters(self) -> list[nn.Parameter]:
        """All, each once."""
        found = {p: None for step in self.steps for module in step.modules() for p in module.parameters()}
        return list(found)


def parse(model: StagedModel) -> Program:
    """The program of a model's stages."""
    graph = _Graph()
    value = 0
    for index, stage in enumerate(model.stages):
        value = graph.stage(f"stages.{index}", stage, value)
    return _Fuser(graph.nodes, value).run()


class _Graph:
    """Collects nodes; node ``i`` writes value ``i + 1``."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def stage(self, name: str, module: nn.Module, value: int) -> int:
        """Add a stage; a stateful module that would run twice in it makes it opaque."""
        mark = len(self.nodes)
        out = self.add(name, module, value)
        parts = [n.module for n in self.nodes[mark:] if n.module is not None]
        runs = Counter(inner for part in parts for inner in part.modules() if isinstance(inner, base.MemoryModule))
        if any(count > 1 for count in runs.values()) or not _covered(module, parts):
            del self.nodes[mark:]
            return self._node(Node(name, module, (value,)))
        return out

    def add(self, name: str, module: nn.Module, value: int, sequence: bool = True) -> int:
        """Add a module behind a value; the number of its output."""
        if _hooked(module):
            return self._node(Node(name, module, (value,), sequence))
        if type(module) is nn.Sequential or (type(module) is layer.SeqToANNContainer and sequence):
            inner = sequence and type(module) is nn.Sequential
            for child, part in module.named_children():
                value = self.add(f"{name}.{child}", part, value, inner)
            return value
        if sequence and any(True for _ in module.children()) and not isinstance(module, base.MemoryModule):
            out = self._traced(name, module, value)
            if out is not None:
                return out
        return self._node(Node(name, module, (value,), sequence))

    def _node(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes)

    def _traced(self, name: str, module: nn.Module, value: int) -> int | None:
        """A block through ``torch.fx``; None where its forward is not a graph of modules and additions."""
        tracer = _Tracer()
        try:
            graph = tracer.trace(module)
        except Exception:  # whatever a forward does that symbolic values cannot
            return None
        mark = len(self.nodes)
        values: dict[fx.Node, int] = {}
        for node in graph.nodes:
            inputs = [arg for arg in node.args if isinstance(arg, fx.Node)]
            if node.op == "placeholder":
                if values:
                    break
                values[node] = value
            elif node.op == "output":
                if len(inputs) == 1 and len(node.args) == 1 and inputs[0] in values:
                    return values[inputs[0]]
                break
            elif node.op == "call_module" and len(inputs) == len(node.args) == 1 and not node.kwargs:
                part = module.get_submodule(str(node.target))
                values[node] = self.add(f"{name}.{node.target}", part, values[inputs[0]])
            elif _adds(node) and len(inputs) == 2:
                values[node] = self._node(Node(name, None, (values[inputs[0]], values[inputs[1]])))
            else:
                break
        del self.nodes[mark:]
        return None


class _Tracer(fx.Tracer):
    """Stops at modules without children, containers and neurons."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """See ``torch.fx.Tracer``."""
        return True


def _adds(node: fx.Node) -> bool:
    known = node.op == "call_function" and node.target in (operator.add, operator.iadd, torch.add)
    return (known or (node.op == "call_method" and node.target == "add")) and len(node.args) == 2 and not node.kwargs


def _covered(stage: nn.Module, parts: list[nn.Module]) -> bool:
    """True if the parts hold all parameters of the stage; a block that uses some directly is opaque."""
    inside = {p for part in parts for p in part.parameters()}
    return all(p in inside for p in stage.parameters())


def _hooked(module: nn.Module) -> bool:
    tables = (
        module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks,
    )  # fmt: skip
    return any(tables)


class _Fuser:
    """Finds units in the nodes."""

    def __init__(self, nodes: list[Node], out: int) -> None:
        self._nodes, self._out = nodes, out
        self._uses = Counter(value for node in nodes for value in node.inputs)
        self._uses[out] += 1
        self._reader = {value: index for index, node in enumerate(nodes) for value in node.inputs}

    def run(self) -> Program:
        program, done = Program(out=self._out), set[int]()
        for index, node in enumerate(self._nodes):
            if index in done:
                continue
            if node.module is None:
                program.steps.append(Step("add", node.name, node.inputs, index + 1))
                continue
            chain = self._unit(index)
            if chain is not None:
                unit, members = chain
                done.update(members)
                step = Step("unit", node.name, node.inputs, members[-1] + 1, unit=unit)
            else:
                module = node.module if node.sequence else layer.SeqToANNContainer(node.module)
                step = Step("call", node.name, node.inputs, index + 1, module=module, why=_why(node))
            program.steps.append(step)
        _in_order(program)
        return program

    def _follow(self, index: int) -> Iterator[tuple[int, Node]]:
        """A node and those after it, as long as each is the only reader of the one before."""
        while True:
            yield index, self._nodes[index]
            value = index + 1
            if self._uses[value] != 1 or value not in self._reader or value == self._out:
                return
            index = self._reader[value]
            if self._nodes[index].module is None:
                return

    def _unit(self, index: int) -> tuple[Unit, list[int]] | None:
        pre: list[Leaf] = []
        mid: list[Leaf] = []
        post: list[Leaf] = []
        op: Op | None = None
        norm: Norm | None = None
        node: Any = None
        members: list[int] = []
        for place, part in self._follow(index):
            module = part.module
            assert module is not None
            leaf = _leaf(part)
            if node is not None:
                if leaf is None or not isinstance(module, _MAX):
                    break
                post += [] if type(module) is nn.Identity else [leaf]
            elif leaf is not None:
                (mid if op is not None or norm is not None else pre).append(leaf)
            elif op is None and norm is None and Op.fits(module) and _mode_fits(part):
                op = Op(module)
            elif norm is None and not mid and (per_step := classify(module, part.sequence)) is not None:
                norm = Norm(module, per_step)
            elif part.sequence and type(module) in FUSED and unfusable(module) is None and not module.store_v_seq:
                node = module
            else:
                break
            members.append(place)
        if node is None:
            return None
        pre, mid = ([leaf for leaf in group if type(leaf.module) is not nn.Identity] for group in (pre, mid))
        return Unit(pre, op, norm, mid, node, constants(node), post), members


def _mode_fits(part: Node) -> bool:
    if not part.sequence:
        return isinstance(part.module, nn.Linear) or not hasattr(part.module, "step_mode")
    if isinstance(part.module, nn.Linear):
        return True
    return getattr(part.module, "step_mode", "s") == "m"


def _leaf(part: Node) -> Leaf | None:
    """The module as one that treats samples by themselves, or None."""
    module: Any = part.module
    kind = _WRAPPED.get(type(module), type(module))
    if type(module) is nn.Identity:
        return Leaf(module, part.sequence)
    known = kind in _POOLS or kind is nn.Flatten
    if not known or getattr(module, "return_indices", False):
        return None
    if type(module) in _WRAPPED:
        return Leaf(module, True) if part.sequence and module.step_mode == "m" else None
    return None if part.sequence else Leaf(module, False)


def _why(node: Node) -> str:
    kind = type(node.module).__name__
    if _hooked(node.module):  # type: ignore[arg-type]
        return f"{kind} has hooks"
    if isinstance(node.module, base.MemoryModule):
        return unfusable(node.module) or f"{kind} keeps a state"
    if isinstance(node.module, VIEWS):
        return f"{kind} is a view"
    return f"{kind} is not part of a known layer"


def _in_order(program: Program) -> None:
    """Steps so that every value is written before it is read; a unit is as late as its last member."""
    program.steps.sort(key=lambda step: step.out)
