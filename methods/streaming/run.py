"""Runs a program of streamed layers: one node of the autograd graph for all stages of a model.

Forward: every value is kept as the width rules say until its last reader is done; those that a layer's backward reads
stay. Backward: steps in reverse. A value's gradient is a tensor ``[T, N, ...]`` that lives from its last reader's
backward to its writer's; an addition hands the same tensor to both its inputs, and who is the last to hold it may
reuse its memory. Values are read in several shapes (:class:`~methods.streaming.functions.Ref`), so a gradient has any
of them, with the elements in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from methods._entry import Entry
from methods.kernels.lif_stream import valueless
from methods.packing import RAW, narrowest
from methods.streaming.backward import Backward
from methods.streaming.forward import Forward
from methods.streaming.functions import Joined, Reshaped, Shape, Slots
from methods.streaming.ops import Gradients, Leaf
from methods.streaming.parse import Program, Step
from methods.streaming.rows import Rows
from methods.streaming.unit import Mode, Unit

Widths = list[int | None]


@dataclass
class Kept:
    """Widths of values in a forward.

    Args:
        widths: bits an element by value; None: measure.
        violations: elements by value that their width could not hold.
        measured: widths that were measured.
    """

    widths: Widths
    violations: Tensor
    measured: dict[int, int]

    def rows(self, value: int, x: Tensor) -> Rows:
        """A value of known content."""
        width = self.widths[value]
        if width is None and not valueless(x):
            width = self.widths[value] = self.measured[value] = narrowest(x)
        if not width:
            return Rows.raw(x)
        out = Rows.empty(width, tuple(x.shape), x.dtype, x.device)
        pieces = [(0, x.shape[1])] if out.by_kernel else [(a, a + 1) for a in samples(x)]
        for a, b in pieces:
            out.write(a, b, x[:, a:b], self.violations[value])
        return out


class Gradient:
    """A value's gradient, and how many values it belongs to."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.holders = tensor, 1


def samples(x: Tensor) -> range:
    """All samples of a batch; of a fake one, which has no values, two, whose bytes all others share."""
    return range(min(x.shape[1], 2) if valueless(x) else x.shape[1])


def readers(program: Program) -> dict[int, list[int]]:
    """Steps that read a value."""
    found: dict[int, list[int]] = {}
    for index, step in enumerate(program.steps):
        for value in step.inputs:
            found.setdefault(value, []).append(index)
    return found


def needed_until(program: Program, needs: list[bool]) -> dict[int, int]:
    """The first step whose backward reads a value; values that no backward reads are absent.

    Args:
        program: the steps.
        needs: whether a value needs a gradient.
    """
    found = {}
    for value, steps in readers(program).items():
        reading = [i for i in steps if program.steps[i].kind != "add" and needs[program.steps[i].out]]
        if reading:
            found[value] = min(reading)
    return found


def trained(program: Program, data: bool) -> list[bool]:
    """Whether a value needs a gradient; ``data``: whether the network's input does."""
    count = 1 + max((step.out for step in program.steps), default=0)
    found = [False] * count
    found[0] = data
    for step in program.steps:
        own = any(p.requires_grad for module in step.modules() for p in module.parameters())
        found[step.out] = own or any(found[value] for value in step.inputs)
    return found


@dataclass
class Plan:
    """What runs.

    Args:
        program: the steps.
        modes: of every step; ignored for additions and calls.
    """

    program: Program
    modes: list[Mode]


def run(plan: Plan, x: Tensor, kept: Kept, amp: torch.dtype | None) -> Tensor:
    """Output of the last stage, ``[T, N, ...]``."""
    parameters = plan.program.parameters()
    return _Run.apply(x, plan, kept, amp, torch.is_grad_enabled(), parameters, *parameters)


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, plan: Plan, kept: Kept, amp: torch.dtype | None, grad: bool, parameters: Any, *_: Tensor
    ) -> Tensor:
        trace = Trace(plan, kept, amp, ctx.needs_input_grad[0])
        out = trace.forward(x)
        ctx.trace, ctx.parameters = trace, parameters
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        trace, ctx.trace = ctx.trace, None
        if trace is None:
            raise RuntimeError("second backward through streamed stages: the first freed what it needs")
        into = Gradients()
        grad_x = trace.backward(grad, into)
        del grad, trace
        return grad_x, None, None, None, None, None, *[into.take(p) for p in ctx.parameters]


class Trace:
    """One forward and its backward.

    Args:
        plan: what runs.
        kept: widths.
        amp: the dtype that autocast asks for, or None.
        data: whether the network's input needs a gradient.
    """

    def __init__(self, plan: Plan, kept: Kept, amp: torch.dtype | None, data: bool) -> None:
        self._plan, self._kept, self._amp, self._data = plan, kept, amp, data
        self.needs = trained(plan.program, data)
        self._until = needed_until(plan.program, self.needs)
        self._reads = readers(plan.program)
        self.values: dict[int, Rows] = {}
        self.saved: list[Any] = [None] * len(plan.program.steps)
        self.shapes: dict[int, Shape] = {}
        self.inner: dict[int, Shape] = {}
        """Shape of a step's output before its ``views``."""

    def forward(self, x: Tensor) -> Tensor:
        """See :func:`run`."""
        program = self._plan.program
        self.values[0] = Rows.raw(x)
        self.shapes[0] = tuple(x.shape)
        for index in range(len(program.steps)):
            self.step_forward(index)
            self._forget(index)
        out = self.values.pop(program.out)
        for view in program.views:
            out = shaped(out, view(out.shape, self.shapes))
        # An identity program would give back its input itself.
        return out.payload.view_as(out.payload) if out.is_raw else out.read(0, out.shape[1])

    def step_forward(self, index: int) -> None:
        """One step."""
        step, mode = self._plan.program.steps[index], self._plan.modes[index]
        last = step.out == self._plan.program.out
        if step.kind == "unit":
            width = RAW if last else self._kept.widths[step.out]
            rows, self.saved[index] = Forward(
                self._unit(step), self._input(step), mode, 1 if width is None else width, self._amp
            ).run()
            if not self.needs[step.out]:
                self.saved[index] = None
        elif step.kind == "add":
            rows = self._sum(step, RAW if last else self._kept.widths[step.out])
        else:
            rows = self._call(index, step, last)
        self.inner[index] = rows.shape
        self.shapes.update(dict.fromkeys(step.like, rows.shape))
        for view in step.views:
            rows = shaped(rows, view(rows.shape, self.shapes))
        self.values[step.out], self.shapes[step.out] = rows, rows.shape

    def _read(self, step: Step, place: int) -> Rows:
        """An input of a step, in the shape that it takes it in."""
        rows = self.values[step.inputs[place]]
        return rows if step.function is not None else shaped(rows, step.reads[place].shape(self.shapes))

    def _input(self, step: Step) -> Any:
        """What a unit or a call reads."""
        found = [self._read(step, place) for place in range(len(step.inputs))]
        return found[0] if len(found) == 1 else Joined(found)

    def _unit(self, step: Step) -> Unit:
        """A unit behind its function."""
        assert step.unit is not None
        unit, sizes = step.unit, self.shapes
        if any(isinstance(leaf.module, Reshaped) for leaf in unit.post):
            post = [
                replace(f, module=f.module.bound(sizes)) if isinstance(f.module, Reshaped) else f for f in unit.post
            ]
            unit = replace(unit, post=post)
        if step.function is None:
            return unit
        return replace(unit, pre=[Leaf(step.function.bound(sizes, self._amp), sequence=True), *unit.pre])

    def _module(self, step: Step) -> nn.Module:
        """What a call runs."""
        found = step.module if step.function is None else step.function.bound(self.shapes, self._amp)
        assert found is not None
        return found

    def _sum(self, step: Step, width: int | None) -> Rows:
        one, two = (self._read(step, place) for place in range(2))
        batch = one.shape[1]
        kind = torch.promote_types(one.dtype, two.dtype)
        if width is None:
            whole = one.read(0, batch) + two.read(0, batch)
            return self._kept.rows(step.out, whole)
        out = Rows.empty(width, one.shape, kind, one.payload.device)
        out.add(one, two, self._kept.violations[step.out])
        return out

    def _call(self, index: int, step: Step, last: bool) -> Rows:
        rows, module = self._input(step), self._module(step)
        x = rows.payload if rows.is_raw else rows.read(0, rows.shape[1])
        entry = Entry(module, x)
        with torch.no_grad(), entry.autocast():
            out = module(x)
        del x
        entry.settle()
        if self.needs[step.out]:
            self.saved[index] = entry
        return Rows.raw(out) if last else self._kept.rows(step.out, out)

    def _forget(self, index: int) -> None:
        """Values that nobody reads again."""
        for value in self._plan.program.steps[index].inputs:
            later = any(reader > index for reader in self._reads[value]) or value == self._plan.program.out
            if not later and value not in self._until:
                self.values.pop(value, None)

    def backward(self, grad: Tensor, into: Gradients) -> Tensor | None:
        """Gradient of the network's input where it needs one.

        Args:
            grad: of the last stage's output; kept as it is.
            into: takes the gradients of parameters.
        """
        program = self._plan.program
        first = Gradient(grad)
        grads = {program.out: first}
        del grad, first
        for index in reversed(range(len(program.steps))):
            self.step_backward(index, grads, into)
        found = grads.get(0)
        return None if found is None else found.tensor.reshape(self.shapes[0])

    def step_backward(self, index: int, grads: dict[int, Gradient], into: Gradients) -> None:
        """One step; its output's gradient is used up."""
        step = self._plan.program.steps[index]
        saved, self.saved[index] = self.saved[index], None
        own = grads.pop(step.out, None)
        if own is not None and self.needs[step.out]:
            if step.kind == "add":
                self._spread(step, own, grads)
            else:
                self._pass(index, step, saved, own, grads, into)
        del own
        for value in step.inputs:
            if self._until.get(value) == index:
                self.values.pop(value, None)

    def _spread(self, step: Step, own: Gradient, grads: dict[int, Gradient]) -> None:
        own.holders -= 1
        for value in step.inputs:
            if not self.needs[value]:
                continue
            known = grads.get(value)
            if known is None:
                grads[value] = own
                own.holders += 1
            elif known.holders == 1:
                known.tensor.add_(own.tensor.reshape(known.tensor.shape))
            else:
                known.holders -= 1
                grads[value] = Gradient(known.tensor + own.tensor.reshape(known.tensor.shape))

    def _pass(
        self, index: int, step: Step, saved: Any, own: Gradient, grads: dict[int, Gradient], into: Gradients
    ) -> None:
        """A gradient through a unit or a call, to its inputs."""
        owned = own.holders == 1 and step.out != self._plan.program.out
        own.holders -= 1
        tensor = own.tensor.reshape(self.inner.get(index, own.tensor.shape))
        del own
        if len(step.inputs) > 1:
            self.through(index, saved, tensor, owned, self._slots(step, grads), into)
            return
        value = step.inputs[0]
        known = grads.get(value)
        given = None if known is None or known.holders != 1 else known.tensor
        if given is not None and step.reads:
            shape = step.reads[0].shape(self.shapes)
            given = given.view(shape) if given.is_contiguous() or given.shape == shape else None
        made = self.through(index, saved, tensor, owned, given, into)
        if made is None or made is given:
            return
        if known is not None:
            known.holders -= 1
            made.add_(known.tensor.reshape(made.shape))
        grads[value] = Gradient(made)

    def _slots(self, step: Step, grads: dict[int, Gradient]) -> Slots:
        """Gradients of several inputs, to be added to."""
        places: list[Tensor | None] = []
        for value in step.inputs:
            known = grads.get(value)
            if not self.needs[value]:
                places.append(None)
                continue
            if known is None or known.holders > 1 or not known.tensor.is_contiguous():
                made = self._blank(value)
                if known is not None:
                    known.holders -= 1
                    made.add_(known.tensor.reshape(made.shape))
                known = grads[value] = Gradient(made)
            places.append(known.tensor)
        return Slots([self.shapes[value] for value in step.inputs], places)

    def _blank(self, value: int) -> Tensor:
        rows = self.values[value]
        return torch.zeros(self.shapes[value], dtype=rows.dtype, device=rows.payload.device)

    def through(self, index: int, saved: Any, grad: Tensor, owned: bool, given: Any, into: Gradients) -> Tensor | None:
        """Gradient of a step's input; added to ``given``, a tensor or slots, where there is one.

        Args:
            index: of the step.
            saved: what its forward kept.
            grad: of its output.
            owned: ``grad`` is nobody else's.
            given: the input's gradient so far, where its memory may be used.
            into: takes the gradients of parameters.
        """
        step = self._plan.program.steps[index]
        rows, wanted = self._input(step), any(self.needs[value] for value in step.inputs)
        if step.unit is not None:
            mode = self._plan.modes[index]
            return Backward(self._unit(step), rows, saved, mode, grad, owned, given, wanted, into).run()
        made = _recall(self._module(step), saved, rows, grad, wanted, into)
        return made if given is None or made is None else given.add_(made)


def shaped(rows: Rows, shape: Shape) -> Rows:
    """The same elements in another shape; steps and samples as they are."""
    if rows.shape == shape:
        return rows
    return replace(rows, shape=shape, payload=rows.payload.reshape(shape) if rows.is_raw else rows.payload)


def _recall(module: nn.Module, entry: Entry, rows: Any, grad: Tensor, wanted: bool, into: Gradients) -> Tensor | None:
    """An opaque module again, with a graph, and back through that."""
    x = (rows.payload.detach() if rows.is_raw else rows.read(0, rows.shape[1])).requires_grad_(wanted)
    parameters = [p for p in module.parameters() if p.requires_grad]
    with entry.again(), torch.enable_grad():
        out = module(x)
    leaves = [*([x] if wanted else []), *parameters]
    # Through the edge: the recomputed output itself is not needed, unless an operator saved it.
    edge = torch.autograd.graph.get_gradient_edge(out)
    del out
    found = torch.autograd.grad(edge, leaves, grad, allow_unused=True)
    for parameter, one in zip(parameters, found[len(leaves) - len(parameters) :], strict=True):
        if one is not None:
            into.add(parameter, one)
    if not wanted:
        return None
    return torch.zeros_like(x) if found[0] is None else found[0]
