"""A stage as a straight-line program of steps, so that what a block does inside can be cut, too.

Containers are taken apart into their children, blocks through ``torch.fx`` (:mod:`methods.streaming.tracing`), whatever
class they have: a residual block of SEW-ResNet, a transformer's attention and a block that a user wrote are graphs of
the same kind. Every step ends with one module or one sum, and writes one tensor; functions between modules (reshaped
tokens, the products of spiking attention) belong to the module that reads them. Steps read any values before them; what
a forward reads off its tensors (shapes) is passed on as it is.

A module stays one step where its forward is no such graph: it decides by values, holds parameters of its own, changes
tensors in place, draws random numbers outside its children, or somebody listens to its calls. So does a stage in which
a stateful module runs twice. What a forward reads off its module (numbers, flags) is part of the graph:
:meth:`Program.fresh` tells whether it is still the same.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from methods._nodes import ADDING, INPUT, Flat, Node, facts_of, is_value, mapped, name_of
from methods.widths import Bound, output_bound

Step = tuple[Node, ...]


@dataclass(frozen=True)
class Ends:
    """What goes into and out of consecutive steps.

    Args:
        reads: values from before that are read, tensors.
        told: those that are none.
        out: the tensor that is read later on, or is the stage's output.
    """

    reads: tuple[int, ...]
    told: tuple[int, ...]
    out: int


class Program:
    """The steps of a stage.

    Args:
        stage: it.
    """

    def __init__(self, stage: nn.Module) -> None:
        flat = Flat()
        if not flat.stage(stage):
            flat = Flat(deep=False)
            flat.stage(stage)
        self.nodes, self.facts = flat.nodes, flat.facts
        self._readers: dict[int, list[Node]] = {}
        for node in self.nodes:
            for number in node.reads:
                self._readers.setdefault(number, []).append(node)
        self.steps = list(self._merged(list(self._grouped())))
        self._step_of = {node.out: at for at, step in enumerate(self.steps) for node in step} | {INPUT: -1}

    @property
    def is_chain(self) -> bool:
        """True if every step is a module that reads the one before."""
        return all(
            len(s) == 1 and isinstance(s[0].target, nn.Module) and len(s[0].reads) == 1 for s in self.steps
        ) and ([step[0].reads[0] for step in self.steps] == list(range(len(self.steps))))

    def fresh(self) -> bool:
        """False if a block has other flags and numbers than when it was read."""
        return all(facts_of(block) == facts for block, facts in self.facts)

    def ends(self, start: int, stop: int) -> Ends | None:
        """Of consecutive steps; None where they write more than one tensor that is read later, or none."""
        return self._ends([node for step in self.steps[start:stop] for node in step])

    def across(self, start: int, stop: int) -> list[int]:
        """Tensors from before some steps that are read after them."""
        born = [number for number, at in self._step_of.items() if at < start and not self._told(number)]
        return [number for number in born if self._last(number) >= stop]

    def dropped(self, start: int, stop: int) -> frozenset[int]:
        """Values that nobody reads after some steps."""
        return frozenset(number for number in self._step_of if start <= self._last(number) < stop)

    def joined(self, one: int, other: int) -> bool:
        """True if one sum is the last reader of both values, so that both have its gradient."""
        last = [[n for n in self._readers.get(number, ()) if not n.told] for number in (one, other)]
        return bool(last[0]) and bool(last[1]) and last[0] == last[1][-1:] and last[0][-1].sums

    def bounds(self, given: Bound, data: bool) -> tuple[dict[int, Bound], dict[int, bool]]:
        """Bound of every value, and whether it is still the network's own input."""
        bounds, own = {INPUT: given}, {INPUT: data}
        for node in self.nodes:
            own[node.out] = node.views and own[node.reads[0]]
            bounds[node.out] = None if node.told else node.bound(bounds)
        return bounds, own

    def cuts(self, bounds: dict[int, Bound]) -> list[int]:
        """Where weights, sums or products follow on values that can be packed: all such places, from the first on."""
        found, last = [], 0
        for at in range(1, len(self.steps)):
            ends, step = self.ends(last, at), self.steps[at]
            light = len(step) == 1 and step[0].target not in ADDING and _keeps(step[0])
            if ends is not None and not light and (bounds[ends.out] or 256) < 256:
                found.append(at)
                last = at
        return found if found and self.ends(last, len(self.steps)) is not None else []

    def _ends(self, nodes: Sequence[Node]) -> Ends | None:
        inside = {node.out for node in nodes}
        read = dict.fromkeys(number for node in nodes for number in node.reads if number not in inside)
        outs = [
            node for node in nodes
            if any(reader.out not in inside for reader in self._readers.get(node.out, ())) or node is self.nodes[-1]
        ]  # fmt: skip
        tensors = [node.out for node in outs if not node.told]
        if len(tensors) != 1 or self._bundle(tensors[0]) or any(self._bundle(number) for number in read):
            return None
        told = tuple(number for number in read if self._told(number))
        return Ends(tuple(number for number in read if number not in told), told, tensors[0])

    def _grouped(self) -> Iterator[list[Node]]:
        """Nodes by the module or sum that they belong to; what is told goes where it can be."""
        groups: list[list[Node]] = [[]]
        for node in (node for node in self.nodes if not node.told):
            if node.sums and groups[-1]:
                groups.append([])
            groups[-1].append(node)
            users = [reader for reader in self._readers.get(node.out, ()) if not reader.told]
            if isinstance(node.target, nn.Module) or node.sums or len(users) > 1:
                groups.append([])
        groups = [group for group in groups if group]
        at = {INPUT: 0} | {node.out: index for index, group in enumerate(groups) for node in group}
        for node in (node for node in self.nodes if node.told):
            at[node.out] = max(at[number] for number in node.reads)
            groups[at[node.out]].append(node)
        for group in groups:
            yield sorted(group, key=lambda node: node.out)

    def _merged(self, groups: list[list[Node]]) -> Iterator[Step]:
        """Groups, together with those after them until they write one tensor."""
        pending: list[Node] = []
        for group in groups:
            pending += group
            if self._ends(pending) is not None:
                yield tuple(pending)
                pending = []
        if pending:
            yield tuple(pending)

    def _last(self, number: int) -> int:
        """The last step that reads a value; one past the last step for the stage's output."""
        if number == self.nodes[-1].out:
            return len(self.steps)
        return max((self._step_of[reader.out] for reader in self._readers.get(number, ())), default=-1)

    def _told(self, number: int) -> bool:
        return number != INPUT and self.nodes[number - 1].told

    def _bundle(self, number: int) -> bool:
        """True for a tuple of tensors."""
        picks = [reader for reader in self._readers.get(number, ()) if reader.target is operator.getitem]
        return bool(picks) and not self._told(number)


class Piece(nn.Module):
    """Consecutive steps of a program.

    Args:
        steps: they.
        ends: what goes into and out of them.
    """

    def __init__(self, steps: Sequence[Step], ends: Ends) -> None:
        super().__init__()
        self._steps, self._ends = tuple(steps), ends
        self._nodes = [node for step in steps for node in step]
        last = {number: node.out for node in self._nodes for number in node.reads}
        self._drops = {node.out: [n for n, at in last.items() if at == node.out] for node in self._nodes}
        modules = {node.target: None for node in self._nodes if isinstance(node.target, nn.Module)}
        for index, module in enumerate(modules):
            self.add_module(str(index), module)
        self._places = {module: index for index, module in enumerate(modules)}

    def forward(self, *inputs: Tensor, told: dict[int, Any]) -> Tensor:
        """The output.

        Args:
            inputs: tensors that are read, in the order of :attr:`Ends.reads`.
            told: what is read besides, by number; takes what is told in these steps.
        """
        values = dict(zip(self._ends.reads, inputs, strict=True)) | told
        del inputs
        for node in self._nodes:
            found = values[node.out] = node.run(values)
            if node.told:
                told[node.out] = found
            del found
            for number in self._drops[node.out]:
                if number != self._ends.out:
                    del values[number]
        return values[self._ends.out]

    def extra_repr(self) -> str:
        """Its calls: equal for pieces that do the same."""
        names = {number: f"%{at}" for at, number in enumerate((*self._ends.reads, *self._ends.told))}
        lines = []
        for node in self._nodes:
            names[node.out] = f"%{len(names)}"
            given = mapped((node.args, node.kwargs), lambda a: names[a.number] if is_value(a) else a)
            target = node.target
            lines.append(f"{self._places[target] if isinstance(target, nn.Module) else name_of(target)}{given}")
        return " ".join(lines)


def _keeps(node: Node) -> bool:
    """True for a module or view that gives other places to values, or picks some."""
    return node.views or (isinstance(node.target, nn.Module) and output_bound(node.target, 7) == 7)
