"""A fake copy of a model that tells what a step would cost under a layout: no arithmetic, no device, no subprocess."""

from __future__ import annotations

import contextlib
import math
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.nn.modules.batchnorm import _NormBase

from harness.contracts import Loss, StagedModel, reset_states
from harness.ledger import BLOCK, Ledger
from methods import _profile as profile
from methods._layout import Layout, Part, Segment, in_time, neurons, part, parts, places, programs, value_bounds
from methods._measure import faked
from methods._nodes import INPUT
from methods._profile import Cost, Given, Meta, Source
from methods._segment import run_part, segmented_forward
from methods.compressors import Keeper, width_under
from methods.packing import RAW

Measured = dict[tuple[int, int], int]
"""Widths that a run found where no rule knows them, by stage and number of the value."""
Autocast = tuple[bool, torch.dtype]
"""Whether autocast is on, and its dtype."""

CACHED_COSTS = 4096
"""How many costs a process remembers (our choice): levels, and cells of one model, measure the same parts."""


class Memory(OrderedDict[Hashable, Any]):
    """Remembers the last ``limit`` values."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def put(self, key: Hashable, value: Any) -> None:
        """Add one; the oldest goes where there is no room."""
        self[key] = value
        if len(self) > self._limit:
            self.popitem(last=False)


_COSTS = Memory(CACHED_COSTS)


@dataclass(frozen=True)
class Setting:
    """What a step runs under.

    Args:
        given: the input batch.
        loss: the objective.
        compressor: how inputs are kept.
        measured: widths that a run found.
        amp: autocast.
    """

    given: Meta
    loss: Loss
    compressor: str
    measured: Measured
    amp: Autocast


@dataclass(frozen=True)
class _Seen:
    """A value of a stage, as a forward sees it.

    Args:
        value: what it is like; the value itself where it is no tensor.
        source: where it comes from.
        storage: equal for values in the same memory.
    """

    value: Any
    source: Source
    storage: int = 0

    @property
    def bytes(self) -> int:
        """Of a tensor, in whole blocks; the network's own input takes none."""
        shape, _, dtype, _ = self.value
        return 0 if self.source == "data" else -(-math.prod(shape) * dtype.itemsize // BLOCK) * BLOCK


class Twin:
    """The copy, inside a fake mode.

    Args:
        model: in the mode it will train in, its states reset.
        setting: what its steps run under.
        mode: the active fake mode.
    """

    def __init__(self, model: StagedModel, setting: Setting, mode: FakeTensorMode) -> None:
        self.model, self._setting = copy_of(model, mode), setting
        # Neither scaler nor observers: the original's belong to real steps.
        self._loss = Loss(setting.loss.kind, setting.loss.criterion)
        shape, _, _, device = setting.given
        self._target = torch.zeros(shape[1], dtype=torch.int64, device=device)
        self.programs = programs(self.model.stages)
        bounds = value_bounds(self.model.stages, self.programs)
        self.cuts = [program.cuts(found) for program, found in zip(self.programs, bounds, strict=True)]
        self._bounds, self._parts, self._known = bounds, dict[Segment, Part](), dict[Hashable, Any]()
        self._once: list[frozenset[nn.Module]] = []
        self._seen = self._walk()

    def part(self, segment: Segment) -> Part:
        """What a segment runs."""
        bare = Segment(segment.stage, segment.start, segment.stop)
        if bare not in self._parts:
            self._parts[bare] = part(self.model.stages[bare.stage], self.programs[bare.stage], bare)
        return self._parts[bare]._replace(segment=segment)

    def module(self, segment: Segment) -> nn.Module:
        """The module of :meth:`part`."""
        return self.part(segment).module

    def can_part(self, segment: Segment) -> bool:
        """True if a segment holds neurons that can be segments of their own, and something else."""
        module = self.module(segment)
        nodes = neurons(module)
        return bool(nodes) and not in_time(module) and self._once[segment.stage].issuperset(nodes)

    def seconds(self, segment: Segment) -> float:
        """Estimated time of a segment's forward (:func:`methods._profile.seconds`)."""
        found = self.part(segment)
        with torch.no_grad(), self._autocast():
            values = self._values(found)
            reset_states(self.model.stages[segment.stage])
            plain = found._replace(segment=replace(segment, plain=True))
            return profile.seconds(lambda: run_part(plain, values, _keep_nothing))

    def backward(self, segment: Segment) -> int:
        """Bytes of a segment's backward, by itself."""
        found = self.part(segment)
        return self._cost(
            found, [self._width(segment.stage, n) for n in found.reads], [False] * len(found.reads)
        ).backward

    def peak(self, layout: Layout) -> tuple[int, int]:
        """Peak of a step, put together from its parts, and the segment that reaches it (one past the last: the head).

        Bytes beyond what is there before the step.
        """
        costs = list[Cost]()
        kept = dict[int, int | None]()
        for segment in layout:
            if segment.start == 0:
                kept = {}
            costs.append(self._cost_among(segment, kept))
        return profile.compose([*costs, self._head()])

    def exact(self, layout: Layout) -> int:
        """Peak of a step to the byte, with parameters, buffers and inputs; without an optimizer."""
        reset_states(self.model)
        torch.clear_autocast_cache()
        x = profile.empty(self._setting.given)
        ledger = Ledger(self.model, x.device.type)
        ledger.register("inputs", [x, self._target])
        with ledger:
            found = parts(self.model, layout, self.programs)
            widths = [self._width(*place) for place in places(found)]
            keeper = Keeper(self._setting.compressor, widths, x.device)
            with self._autocast():
                logits = segmented_forward(self.model, x, keeper, found)
                self._loss.backward(self._loss(logits, self._target))
        for parameter in self.model.parameters():
            parameter.grad = None
        torch.clear_autocast_cache()
        return ledger.report().peak_bytes

    def _cost_among(self, segment: Segment, kept: dict[int, int | None]) -> Cost:
        """Cost of a segment with what lives beside it, because other parts of its stage need it.

        Args:
            segment: it.
            kept: width of what segments before it keep of the same stage; takes what it keeps.
        """
        key = segment, tuple(kept)
        if key not in self._known:
            found, seen, program = self.part(segment), self._seen[segment.stage], self.programs[segment.stage]
            widths = [self._width(segment.stage, number) for number in found.reads]
            cost = self._cost(found, widths, [number in kept for number in found.reads])
            across = program.across(segment.start, segment.stop)
            held = {seen[n].storage: seen[n].bytes for n in across if n not in found.reads and kept.get(n, 1) != RAW}
            grads = [n for n in across if seen[n].source == "trained" and not program.joined(found.out, n)]
            beside = sum(held.values()), sum(seen[n].bytes for n in grads)
            cost = replace(cost, forward=cost.forward + beside[0], backward=cost.backward + beside[1])
            keeps = dict(zip(found.reads, (width or RAW for width in widths), strict=True))
            self._known[key] = cost, {} if segment.plain or found.free else keeps
        known, keeps = self._known[key]
        kept.update(keeps)
        return known

    def _cost(self, found: Part, widths: list[int | None], again: list[bool]) -> Cost:
        segment, setting, seen = found.segment, self._setting, self._seen[found.segment.stage]
        how = segment.chunks, segment.inner, segment.plain, tuple(widths), tuple(again), setting.compressor
        given = tuple((seen[number].value, seen[number].source) for number in found.reads)
        told = tuple(repr(seen[number].value) for number in found.told)
        key = profile.structure(found.module), how, given, told, setting.amp
        if key not in _COSTS:
            keeper = Keeper(setting.compressor, widths, self._target.device)
            kept = dict[int, Any]()
            slots = range(len(widths))
            local = found._replace(slots=tuple(slots))

            def keep(slot: int, x: Tensor) -> Any:
                return kept[slot] if slot in kept else keeper(slot, x)

            def early(slot: int, x: Tensor) -> None:
                kept[slot] = keeper(slot, x)

            def run(inputs: list[Tensor]) -> Tensor:
                values = dict(zip(found.reads, inputs, strict=True))
                inputs.clear()
                return run_part(local, values | {number: seen[number].value for number in found.told}, keep)

            inputs = [
                Given(meta, source, slot if old else None)
                for slot, (meta, source), old in zip(slots, given, again, strict=True)
            ]
            with self._autocast():
                _COSTS.put(key, profile.measure_many(found.module, run, inputs, early)[0])
        return _COSTS[key]

    def _head(self) -> Cost:
        if "head" in self._known:
            return self._known["head"]
        seen, loss = self._seen[-1][INPUT], self._loss
        structure = profile.structure(self.model.head), loss.kind, repr(loss.criterion)
        key = structure, seen.value, seen.source, self._setting.amp
        if key not in _COSTS:

            def run(x: Tensor) -> Tensor:
                return loss(self.model.head(x), self._target)

            with self._autocast():
                _COSTS.put(key, profile.measure(self.model.head, run, seen.value, seen.source)[0])
        self._known["head"] = _COSTS[key]
        return _COSTS[key]

    def _walk(self) -> list[dict[int, _Seen]]:
        """Every value of every stage; last what the head reads."""
        seen, found = _Seen(self._setting.given, "data"), list[dict[int, _Seen]]()
        for index, program in enumerate(self.programs):
            nodes, calls = neurons(self.model.stages[index]), Counter[nn.Module]()
            handles = [node.register_forward_pre_hook(lambda m, _, c=calls: c.update([m])) for node in nodes]
            reset_states(self.model.stages[index])
            values: dict[int, Any] = {INPUT: profile.empty(seen.value)}
            table = {INPUT: replace(seen, storage=values[INPUT].untyped_storage()._cdata)}
            for node in program.nodes:
                inside = node.target if isinstance(node.target, nn.Module) else None
                child = next(at for at, step in enumerate(program.steps) if node in step)
                with torch.no_grad(), self._autocast(), _named(f"stage {index}, child {child}", inside or node):
                    out = values[node.out] = node.run(values)
                weights = inside is not None and any(p.requires_grad for p in inside.parameters())
                trained = weights or any(table[number].source == "trained" for number in node.reads)
                source: Source = "trained" if trained else "frozen"
                tensor = isinstance(out, Tensor)
                storage = out.untyped_storage()._cdata if tensor else 0
                table[node.out] = _Seen(profile.meta_of(out) if tensor else out, source, storage)
            for handle in handles:
                handle.remove()
            self._once.append(frozenset(node for node in nodes if calls[node] == 1))
            found.append(table)
            seen = table[program.nodes[-1].out]
        return [*found, {INPUT: seen}]

    def _values(self, found: Part) -> dict[int, Any]:
        seen = self._seen[found.segment.stage]
        told = {number: seen[number].value for number in found.told}
        return told | {number: profile.empty(seen[number].value) for number in found.reads}

    def _width(self, stage: int, number: int) -> int | None:
        rule = width_under(self._setting.compressor, self._bounds[stage].get(number))
        return self._setting.measured.get((stage, number), rule)

    def _autocast(self) -> torch.autocast:
        enabled, dtype = self._setting.amp
        return torch.autocast(self._setting.given[3].type, dtype=dtype, enabled=enabled)


def _keep_nothing(slot: int, x: Tensor) -> Any:
    raise AssertionError("a plain segment keeps nothing")


@contextlib.contextmanager
def _named(place: str, module: object) -> Iterator[None]:
    """Say which module cannot be planned for."""
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        reason = (
            f"{place} ({type(module).__name__}): its forward depends on values, which planning has none of ({error})"
        )
        raise ValueError(f"{reason}; use level 'O1'") from error


def copy_of(model: StagedModel, mode: FakeTensorMode) -> StagedModel:
    """A fake copy that runs under fake tensors whatever the original has set."""
    twin = faked(model, mode)
    for module in twin.modules():
        # Recorders would read values.
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        if isinstance(module, _NormBase) and module.momentum is None:
            module.momentum = 0.1  # a cumulative average reads its counter; the bytes are the same
        if isinstance(module, base.MemoryModule):
            for table in (module._memories, module._memories_rv):
                real = {k: v for k, v in table.items() if isinstance(v, Tensor) and not isinstance(v, FakeTensor)}
                table.update({name: mode.from_tensor(value) for name, value in real.items()})
    return twin
