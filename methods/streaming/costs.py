"""What every step of a streamed program costs in every mode: bytes from the ledger under fake tensors, work estimated.

A step's bytes are counted alone, from what lives when it starts; equal steps are counted once. What lives when it
starts is the sum of packed values, gradients and what earlier steps keep, so the peak of any choice of modes follows::

    forward of i:   values + kept[0..i-1] + forward[i]        backward of i:  values + gradients + kept[0..i] + backward[i]
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from harness.ledger import Ledger
from methods import _profile as profile
from methods._profile import FLOPS_PER_BYTE
from methods._twin import Memory
from methods.streaming.functions import Joined, Shape
from methods.streaming.lifetimes import META, Held, Value, distinct, holders, rounded, values_alive
from methods.streaming.ops import Gradients
from methods.streaming.parse import Program, Step
from methods.streaming.rows import Rows
from methods.streaming.run import Gradient, Kept, Plan, Trace, Widths, trained
from methods.streaming.unit import Back, Mode, Unit

FORWARD_PASSES, BACKWARD_PASSES = 10, 20
"""Reads and writes of a layer's output in one pass of normalisation and neuron: counted in :mod:`methods.kernels`."""
CACHE, COLD = 1 << 20, 4.0
"""A processor's second-level cache in bytes, and how much slower elementwise work is beyond it (seen: 1.3 ms for a
product of 16 MiB chunks, 64 ms for one of 128 MiB). Only the order of modes depends on them."""
LAUNCH = 50_000
"""Bytes that could be moved while an operator is launched (our choice): keeps chunks from becoming too many."""
CACHED_COSTS = 8192
"""How many costs a process remembers (our choice)."""

_COSTS = Memory(CACHED_COSTS)


@dataclass(frozen=True)
class Cost:
    """A step in one mode.

    Args:
        forward: most bytes live during its forward, beyond its start.
        kept: bytes that stay after it, without its output.
        backward: most bytes live during its backward, beyond its start.
        work: estimated time in bytes moved: what is done again, and what chunking adds.
    """

    forward: int
    kept: int
    backward: int
    work: float


def modes_of(step: Step, batch: int) -> list[Mode]:
    """The ways to run a step."""
    if step.unit is None:
        return [Mode()]
    counts = sorted({*(4**k for k in range(10) if 4**k < batch), batch} - ({1} if batch >= 4 else set()))
    found = []
    for chunks in counts:
        if step.unit.node is None:
            backs: tuple[Back, ...] = ("once", "all") if step.unit.coupled else ("all",)
            found += [Mode(chunks, "x", convs, back) for convs in (1, 3) for back in backs]
            found.append(Mode(chunks, "y", 1, "all"))
            continue
        if step.unit.coupled:
            found += [Mode(chunks, "x", convs, back) for convs in (1, 3) for back in ("once", "twice", "all")]
            found += [Mode(chunks, "y", 1, back) for back in ("twice", "all")]
        else:
            found += [Mode(chunks, "x", 3, "all"), Mode(chunks, "y", 1, "all")]
        found.append(Mode(chunks, "u"))
    return found


class Costs:
    """Costs of all steps of a fake program.

    Args:
        program: of a fake model, inside its fake mode: opaque modules are measured there.
        bare: the same of a copy on the ``meta`` device, where layers are measured: operators cost a tenth there.
        given: the network's input, a fake tensor.
        widths: bits an element of every value.
        amp: the dtype that autocast asks for, or None.
    """

    def __init__(self, program: Program, bare: Program, given: Tensor, widths: Widths, amp: torch.dtype | None) -> None:
        self._program, self._bare, self._widths, self._amp, self._device = program, bare, widths, amp, given.device
        # Fake tensors belong to their mode: these stay with this object.
        self._forwards: dict[Hashable, Any] = {}
        self._keys = [_structure(step) for step in program.steps]
        self.values: dict[int, Value] = {0: Value(0, tuple(given.shape), given.dtype)}
        self._shapes: dict[int, Shape] = {0: tuple(given.shape)}
        self._inner: dict[int, Shape] = {}
        for index, step in enumerate(program.steps):
            found = self._shape(index, modes_of(step, given.shape[1])[-1])
            self._inner[index] = shape = found.shape
            self._shapes.update(dict.fromkeys(step.like, shape))
            for view in step.views:
                shape = view(shape, self._shapes)
            self.values[step.out] = replace(found, shape=shape)
            self._shapes[step.out] = shape
        self.needs = trained(program, data=False)
        with unset_fake_temporarily():
            self._held = holders(bare, self.values, self._kept(META))
            self._functions = {index: self._estimated(step) for index, step in enumerate(bare.steps)}
        self.values_alive = values_alive(program, self.values, self.needs)
        self.gradients_alive = [distinct(held, self.values) for held in self._held]
        self.parameters_alive = self._parameters()

    def cost(self, index: int, mode: Mode) -> Cost:
        """Of one step in one mode."""
        forward, kept = self._forward(index, replace(mode, back="twice"))
        backward = self._backward(index, replace(mode, convs=1))
        return Cost(forward, kept, backward, self._work(index, mode))

    def added(self, index: int, mode: Mode) -> float:
        """Estimated work of a step beyond what fused BPTT does in it; of an opaque piece, its forward again."""
        step = self._program.steps[index]
        if step.unit is None:
            return self._once_more(index) if step.kind == "call" else 0.0
        plain = Mode(keep="u")
        given, out = self.values[step.inputs[0]], self.values[step.out]
        once = launches(step.unit, given, plain)
        own = self._work(index, mode) - work(step.unit, given, out, mode)
        extra = recomputed(step.unit, given, out, mode) - recomputed(step.unit, given, out, plain)
        return own + extra + launches(step.unit, given, mode) - once

    @contextlib.contextmanager
    def _place(self, index: int) -> Iterator[tuple[Program, torch.device]]:
        """Where a step is measured."""
        if self._program.steps[index].kind == "call":
            yield self._program, self._device
        else:
            with unset_fake_temporarily():
                yield self._bare, META

    def _kept(self, device: torch.device) -> Kept:
        widths: Widths = [0 if width is None else width for width in self._widths]
        return Kept(widths, torch.zeros(len(widths), dtype=torch.int64, device=device), {})

    def _shape(self, index: int, mode: Mode) -> Value:
        """What a step's output is like before the step's views."""
        key = ("shape", *self._key(index))
        if key not in _COSTS:
            with self._place(index) as place, torch.no_grad():
                trace = self._trace(index, mode, *place)
                trace.step_forward(index)
                rows = trace.values[self._program.steps[index].out]
                _COSTS.put(key, Value(rows.width, trace.inner[index], rows.dtype))
        return _COSTS[key]

    def _key(self, index: int) -> tuple[Hashable, ...]:
        step = self._program.steps[index]
        last = step.out == self._program.out
        inputs = tuple(self.values[value] for value in step.inputs)
        shapes: list[Hashable] = [ref.shape(self._shapes) for ref in step.reads]
        if step.function is not None:
            shapes.append(step.function.facts(self._shapes))
        shapes.append(self._shapes.get(step.out))
        return self._keys[index], tuple(shapes), inputs, last, self._widths[step.out], self._amp, self._device.type

    def _trace(self, index: int, mode: Mode, program: Program, device: torch.device) -> Trace:
        modes = [Mode()] * len(program.steps)
        modes[index] = mode
        trace = Trace(Plan(program, modes), self._kept(device), self._amp, False)
        trace.shapes, trace.inner = dict(self._shapes), dict(self._inner)
        for value in program.steps[index].inputs:
            trace.values[value] = self.values[value].rows(device)
        return trace

    def _forward(self, index: int, mode: Mode) -> tuple[int, int]:
        """Most bytes live in a forward beyond its start, and those that stay without the output."""
        key = ("forward", *self._key(index), mode, self.needs[self._program.steps[index].out])
        if key not in _COSTS:
            with self._place(index) as (program, device), torch.no_grad():
                trace, ledger = self._trace(index, mode, program, device), Ledger(None, device.type)
                ledger.register("inputs", [rows.payload for rows in trace.values.values()])
                start = ledger.live
                with ledger:
                    trace.step_forward(index)
                    del trace.values[program.steps[index].out]
                    kept = ledger.live - start
                _COSTS.put(key, (max(ledger.report().timeline) - start, kept))
        return _COSTS[key]

    def _saved(self, index: int, mode: Mode, program: Program, device: torch.device) -> Any:
        """What a forward in a mode keeps; a layer's without running one for each mode."""
        unit = program.steps[index].unit is not None
        full = replace(mode, keep="u", convs=1, back="twice") if unit else mode
        key = *self._key(index), full
        if key not in self._forwards or not unit:
            trace = self._trace(index, full, program, device)
            trace.step_forward(index)
            self._forwards[key] = trace.saved[index]
        saved = self._forwards[key]
        if not unit:
            return saved
        ys = [torch.empty_like(y) for y in saved.ys] if mode.keep != "x" else []
        us = [torch.empty_like(u) for u in saved.us] if mode.keep == "u" else []
        return replace(saved, ys=ys, us=us)

    def _backward(self, index: int, mode: Mode) -> int:
        """Most bytes live in a backward beyond its start."""
        step = self._program.steps[index]
        if not self.needs[step.out]:
            return 0
        held = {v: g for v, g in self._held[index].items() if v == step.out or v in step.inputs}
        order = list({id(g): None for g in held.values()})
        places = [(step.out, *step.inputs).index(v) for v in held]
        who = tuple((place, order.index(id(g)), g.holders) for place, g in zip(places, held.values(), strict=True))
        wanted = tuple(self.needs[value] for value in step.inputs)
        key = ("backward", *self._key(index), mode, who, wanted)
        if key not in _COSTS:
            with self._place(index) as place, torch.no_grad():
                _COSTS.put(key, self._count(index, mode, held, *place))
        return _COSTS[key]

    def _count(self, index: int, mode: Mode, held: Held, program: Program, device: torch.device) -> int:
        trace, ledger = self._trace(index, mode, program, device), Ledger(None, device.type)
        copies: dict[int, Gradient] = {}
        grads: dict[int, Gradient] = {}
        for value, gradient in held.items():
            meta = self.values[value]
            if id(gradient) not in copies:
                copies[id(gradient)] = Gradient(torch.empty(meta.shape, dtype=meta.dtype, device=device))
                copies[id(gradient)].holders = gradient.holders
            grads[value] = copies[id(gradient)]
        ledger.register("inputs", [rows.payload for rows in trace.values.values()])
        ledger.register("inputs", [gradient.tensor for gradient in copies.values()])
        saved = self._saved(index, mode, program, device)
        if program.steps[index].unit is not None:
            ledger.register("inputs", [*saved.ys, *saved.us])
        trace.saved[index] = saved
        del copies, saved
        start = ledger.live
        with ledger:
            trace.step_backward(index, grads, Gradients())
        return max([start, *ledger.report().timeline]) - start

    def _parameters(self) -> list[int]:
        """Bytes of parameters' gradients that exist when a step's backward starts; one more entry for none."""
        seen: set[Tensor] = set()
        total, found = 0, [0] * (len(self._program.steps) + 1)
        for index in reversed(range(len(self._program.steps))):
            found[index + 1] = total
            for module in self._program.steps[index].modules():
                for p in module.parameters():
                    if p.requires_grad and p not in seen:
                        seen.add(p)
                        total += rounded(p.numel() * p.element_size())
        found[0] = total
        return found

    def _work(self, index: int, mode: Mode) -> float:
        step = self._program.steps[index]
        if step.unit is None:
            return 0.0
        # A function runs again with every convolution that does, and for its own backward.
        again = 1 if mode.keep != "x" else 2 + (mode.convs - 1 if step.unit.coupled else 0)
        own = again * self._functions[index]
        return own + work(step.unit, self.values[step.inputs[0]], self.values[step.out], mode)

    def _once_more(self, index: int) -> float:
        """Work of an opaque piece's forward."""
        key = ("again", *self._key(index))
        if key not in _COSTS:
            with self._place(index) as place, torch.no_grad():
                trace = self._trace(index, Mode(), *place)
                _COSTS.put(key, profile.seconds(lambda: trace.step_forward(index)))
        found: float = _COSTS[key]
        return found

    def _estimated(self, step: Step) -> float:
        """Work of a step's function on the whole batch, in bytes that could be moved meanwhile."""
        function = step.function
        if function is None or step.unit is None:
            return 0.0
        parts = [
            Rows.raw(torch.empty(self.values[v].shape, dtype=self.values[v].dtype, device=META)) for v in step.inputs
        ]
        x = Joined(parts).read(0, parts[0].shape[1]) if len(parts) > 1 else parts[0].payload
        return profile.seconds(lambda: function.bound(self._shapes, self._amp)(x))


def work(unit: Unit, given: Value, out: Value, mode: Mode) -> float:
    """Estimated time of a mode, without the convolutions that every mode runs, in bytes that could be moved meanwhile."""
    steps, batch = given.shape[:2]
    size = _outputs(unit, given, out) * out.dtype.itemsize
    moved = size * (FORWARD_PASSES + BACKWARD_PASSES)
    again, passes = _again(unit, given, out, mode)
    length = -(-batch // mode.chunks)
    cold = COLD if size * length / (steps * batch) > CACHE else 1.0
    return again + (moved + passes) * cold + launches(unit, given, mode)


def recomputed(unit: Unit, given: Value, out: Value, mode: Mode) -> float:
    """Estimated time of what a mode does again."""
    return sum(_again(unit, given, out, mode))


def launches(unit: Unit, given: Value, mode: Mode) -> float:
    """Estimated time of a mode's operators before they do anything."""
    neuron, backward = _neurons(unit, mode)
    return LAUNCH * mode.chunks * given.shape[0] * (25 + 30.0 * (1 + neuron + backward))


def _again(unit: Unit, given: Value, out: Value, mode: Mode) -> tuple[float, float]:
    """Estimated time of convolutions, and of normalisation and neuron, that a mode runs again."""
    size = _outputs(unit, given, out)
    module = None if unit.op is None else unit.op.module
    flops = 0.0 if module is None else 2.0 * size * module.weight.numel() / module.weight.shape[0]
    again = 0 if mode.keep != "x" else (mode.convs - 1) + (1 if mode.back == "once" else 2)
    if not unit.coupled:
        again = 1 if mode.keep == "x" else 0
    neuron, backward = _neurons(unit, mode)
    passes = FORWARD_PASSES * neuron + BACKWARD_PASSES * backward
    return again * flops / FLOPS_PER_BYTE, size * out.dtype.itemsize * passes


def _neurons(unit: Unit, mode: Mode) -> tuple[int, int]:
    """How often a mode runs the neuron's forward, and its backward, again."""
    if unit.node is None:
        return 0, 0
    neuron = (0 if mode.keep == "u" else 1) + (1 if mode.back == "all" and unit.coupled else 0)
    return neuron, 1 if mode.back == "all" and unit.coupled and mode.keep != "u" else 0


def _outputs(unit: Unit, given: Value, out: Value) -> float:
    """Elements of the weights' output; pooling after it made the unit's output smaller."""
    size = float(math.prod(out.shape))
    for leaf in (*unit.mid, *unit.post):
        stride = getattr(leaf.module, "stride", 1)
        dims = len(out.shape) - 3
        size *= math.prod(stride) if isinstance(stride, tuple) else stride**dims
    return size


def _structure(step: Step) -> Hashable:
    unit = step.unit
    inside = tuple(profile.structure(module) for module in step.modules())
    if unit is None:
        return step.kind, inside
    shape = len(unit.pre), unit.op is None, len(unit.mid), len(unit.post)
    norm = None if unit.norm is None else (unit.norm.per_step, unit.norm.coupled)
    return step.kind, inside, shape, norm
