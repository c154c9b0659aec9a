"""A model's stages as a straight-line program of streamed layers, additions and opaque modules.

Stages are taken apart into their children, and blocks through ``torch.fx``, whatever class they have: a residual block
of SEW-ResNet and one that a user wrote are the same graph. In the graph, the longest chains ``function? - pooling or
views* - convolution or linear - batch normalisation? - pooling* - neuron - max pooling*`` become units
(:mod:`methods.streaming.unit`), as does ``convolution or linear - batch normalisation`` without a neuron behind it;
sums of two values become additions; everything else is opaque and runs as one checkpointed piece. A function is what
stands between modules (:mod:`methods.streaming.functions`): with it, spiking self-attention
``neuron(scale (v k^T) q)`` and Q-K attention are units like others, of one or more values; values in another shape
(tokens) cost nothing. A stage in which a stateful module runs twice is opaque as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from spikingjelly.activation_based import base, layer
from torch import nn

from harness.contracts import StagedModel
from methods.bptt_fused import FUSED, constants, unfusable
from methods.streaming.functions import Function, Ref, Reshaped, View
from methods.streaming.graph import Graph, Node, hooked
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
)  # fmt: skip
_WRAPPED = {getattr(layer, kind.__name__): kind for kind in (*_POOLS, nn.Flatten) if hasattr(layer, kind.__name__)}
"""SpikingJelly's layers that do the same on a sequence."""

Kind = Literal["unit", "add", "call"]


@dataclass
class Step:
    """One instruction; it writes value number ``out``.

    Args:
        kind: ``unit``, ``add`` or ``call`` (an opaque module).
        name: of its first module.
        inputs: numbers of the values that it reads; 0 is the network's input.
        out: number of the value that it writes.
        reads: the same values in the shapes that it takes them in; empty where ``function`` takes them.
        function: what is done to the inputs before the unit, or instead of a call.
        views: what gives the output its shape.
        like: values that are never written, but whose shape some forward reads: that of the output before ``views``.
        unit: of a unit.
        module: of a call.
        why: of a call: why it is opaque.
    """

    kind: Kind
    name: str
    inputs: tuple[int, ...]
    out: int
    reads: tuple[Ref, ...] = ()
    function: Function | None = None
    views: tuple[View, ...] = ()
    like: tuple[int, ...] = ()
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
    """Steps in order; the number of the value that leaves the last stage, and what gives it its shape."""

    steps: list[Step] = field(default_factory=list)
    out: int = 0
    views: tuple[View, ...] = ()

    def parameters(self) -> list[nn.Parameter]:
        """All, each once."""
        found = {p: None for step in self.steps for module in step.modules() for p in module.parameters()}
        return list(found)


def parse(model: StagedModel) -> Program:
    """The program of a model's stages."""
    graph = Graph()
    ref = Ref(0)
    for index, stage in enumerate(model.stages):
        ref = graph.stage(f"stages.{index}", stage, ref)
    return _Fuser(graph, ref).run()


class _Fuser:
    """Finds units in the nodes."""

    def __init__(self, graph: Graph, ref: Ref) -> None:
        self._nodes, self._asked, self._out, self._views = graph.nodes, graph.asked, ref.value, ref.views
        self._uses = Counter(value for node in graph.nodes for value in node.inputs)
        self._uses[self._out] += 1
        self._reader = {value: index for index, node in enumerate(graph.nodes) for value in node.inputs}

    def run(self) -> Program:
        program, done = Program(out=self._out, views=self._views), set[int]()
        for index, node in enumerate(self._nodes):
            if index in done:
                continue
            plain = Step("add", node.name, node.inputs, index + 1, node.reads)
            if node.module is None:
                program.steps.append(plain)
                continue
            function = node.module if isinstance(node.module, Function) else None
            chain = self._unit(index)
            if chain is not None:
                unit, members, views = chain
                done.update(members)
                name = next(self._nodes[i].name for i in members if not isinstance(self._nodes[i].module, Function))
                like = tuple(i + 1 for i in members[:-1] if i + 1 in self._asked)
                step = replace(plain, kind="unit", name=name, unit=unit, function=function, views=views, like=like)
                step.out = members[-1] + 1
            elif function is not None:
                why = "a function without a streamed layer behind it"
                step = replace(plain, kind="call", module=function, function=function, why=why)
            else:
                module = node.module if node.sequence else layer.SeqToANNContainer(node.module)
                step = replace(plain, kind="call", module=module, why=_why(node))
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
            if self._nodes[index].module is None or isinstance(self._nodes[index].module, Function):
                return

    def _unit(self, index: int) -> tuple[Unit, list[int], tuple[View, ...]] | None:
        """The longest unit that starts at a node; its nodes; what gives its output its shape."""
        pre: list[Leaf] = []
        mid: list[Leaf] = []
        post: list[Leaf] = []
        op: Op | None = None
        norm: Norm | None = None
        node: Any = None
        members: list[int] = []
        normed = 0
        views: tuple[View, ...] = ()
        for place, part in self._follow(index):
            module = part.module
            assert module is not None
            leaf = _leaf(part)
            fires = part.sequence and type(module) in FUSED and unfusable(module) is None and not module.store_v_seq
            if members and part.reads[0].views:
                # A neuron does not care about shapes: it runs in the one before, and its output takes the new one.
                if not fires or node is not None:
                    break
                views = part.reads[0].views
            if members and part.inputs[0] in self._asked and (leaf is not None or (op is None and norm is None)):
                break
            if isinstance(module, Function):
                if members:
                    break
            elif node is not None:
                if leaf is None or not isinstance(module, _MAX):
                    break
                post += [Leaf(Reshaped(views), sequence=True), leaf] if views else [leaf]
                views = ()
            elif leaf is not None:
                (mid if op is not None or norm is not None else pre).append(leaf)
            elif op is None and norm is None and Op.fits(module) and _mode_fits(part):
                op = Op(module)
            elif norm is None and not mid and (per_step := classify(module, part.sequence)) is not None:
                norm = Norm(module, per_step)
            elif fires:
                node = module
            else:
                break
            members.append(place)
            normed = normed or (len(members) if norm is not None else 0)
        if node is None and op is not None and normed:
            return Unit(pre, op, norm, [], None, None, []), members[:normed], ()
        if members and node is not None and (post or mid) and any(i + 1 in self._asked for i in members[:-1]):
            return None
        return None if node is None else (Unit(pre, op, norm, mid, node, constants(node), post), members, views)


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
    known = kind in _POOLS or kind is nn.Flatten
    if not known or getattr(module, "return_indices", False):
        return None
    if type(module) in _WRAPPED:
        return Leaf(module, True) if part.sequence and module.step_mode == "m" else None
    return None if part.sequence else Leaf(module, False)


def _why(node: Node) -> str:
    kind = type(node.module).__name__
    if hooked(node.module):  # type: ignore[arg-type]
        return f"{kind} has hooks"
    if isinstance(node.module, base.MemoryModule):
        return unfusable(node.module) or f"{kind} keeps a state"
    if isinstance(node.module, VIEWS):
        return f"{kind} is a view"
    return f"{kind} is not part of a known layer"


def _in_order(program: Program) -> None:
    """Steps so that every value is written before it is read; a unit is as late as its last member."""
    program.steps.sort(key=lambda step: step.out)
