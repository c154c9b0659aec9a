"""A fake copy of a model that tells what a step would cost under a layout: no arithmetic, no device, no subprocess."""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
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
from harness.ledger import Ledger
from methods import _profile as profile
from methods._layout import Layout, Segment, chain, in_time, neurons, part, parts
from methods._measure import faked
from methods._profile import Cost, Meta, Source
from methods._segment import run_segments, segmented_forward
from methods.compressors import Keeper, width_under
from methods.widths import input_bounds

Measured = dict[tuple[int, int], int]
"""Widths that a run found where no rule knows them, by stage and first child."""
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
    """What a child of a stage sees in a forward.

    Args:
        given: its input.
        source: where that comes from.
        once: the stage's neurons that run exactly once.
    """

    given: Meta
    source: Source
    once: frozenset[nn.Module]


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
        self._chains = [chain(stage) for stage in self.model.stages]
        self._keys = [[profile.structure(child) for child in children] for children in self._chains]
        self._seen = dict(self._walk())

    def module(self, segment: Segment) -> nn.Module:
        """What a segment runs."""
        return part(self.model.stages[segment.stage], segment)[1]

    def can_part(self, segment: Segment) -> bool:
        """True if a segment holds neurons that can be segments of their own, and something else."""
        module = self.module(segment)
        nodes = neurons(module)
        once = self._seen[segment.stage, segment.start].once
        return bool(nodes) and not in_time(module) and once.issuperset(nodes)

    def seconds(self, segment: Segment) -> float:
        """Estimated time of a segment's forward (:func:`methods._profile.seconds`)."""
        with torch.no_grad(), self._autocast():
            x = profile.empty(self._seen[segment.stage, segment.start].given)
            reset_states(self.model.stages[segment.stage])
            return profile.seconds(lambda: self.module(segment)(x))

    def peak(self, layout: Layout) -> tuple[int, int]:
        """Peak of a step, put together from its parts, and the segment that reaches it (one past the last: the head).

        Bytes beyond what is there before the step.
        """
        widths = self._widths(layout)
        costs = [self._cost(segment, width) for segment, width in zip(layout, widths, strict=True)]
        return profile.compose([*costs, self._head()])

    def exact(self, layout: Layout) -> int:
        """Peak of a step to the byte, with parameters, buffers and inputs; without an optimizer."""
        reset_states(self.model)
        torch.clear_autocast_cache()
        x = profile.empty(self._setting.given)
        ledger = Ledger(self.model, x.device.type)
        ledger.register("inputs", [x, self._target])
        with ledger:
            keeper = Keeper(self._setting.compressor, self._widths(layout), x.device)
            with self._autocast():
                logits = segmented_forward(self.model, x, keeper, parts(self.model, layout))
                self._loss.backward(self._loss(logits, self._target))
        for parameter in self.model.parameters():
            parameter.grad = None
        torch.clear_autocast_cache()
        return ledger.report().peak_bytes

    def _cost(self, segment: Segment, width: int | None) -> Cost:
        seen, setting = self._seen[segment.stage, segment.start], self._setting
        structure = tuple(self._keys[segment.stage][segment.start : segment.stop])
        how = segment.chunks, segment.inner, segment.plain, width, setting.compressor
        key = structure, how, seen.given, seen.source, setting.amp
        if key not in _COSTS:
            module = self.module(segment)

            def run(x: Tensor) -> Tensor:
                return run_segments([(segment, module)], x, Keeper(setting.compressor, [width], x.device))

            with self._autocast():
                _COSTS.put(key, profile.measure(module, run, seen.given, seen.source)[0])
        return _COSTS[key]

    def _head(self) -> Cost:
        seen, loss = self._seen[len(self._chains), 0], self._loss
        structure = profile.structure(self.model.head), loss.kind, repr(loss.criterion)
        key = structure, seen.given, seen.source, self._setting.amp
        if key not in _COSTS:

            def run(x: Tensor) -> Tensor:
                return loss(self.model.head(x), self._target)

            with self._autocast():
                _COSTS.put(key, profile.measure(self.model.head, run, seen.given, seen.source)[0])
        return _COSTS[key]

    def _walk(self) -> Iterator[tuple[tuple[int, int], _Seen]]:
        """What every child of every stage sees, and the head."""
        given = self._setting.given
        source: Source = "data"
        for index, children in enumerate(self._chains):
            nodes, calls = neurons(self.model.stages[index]), Counter[nn.Module]()
            handles = [node.register_forward_pre_hook(lambda m, _, c=calls: c.update([m])) for node in nodes]
            reset_states(self.model.stages[index])
            places = []
            for start, child in enumerate(children):
                places.append(((index, start), given, source))
                with torch.no_grad(), self._autocast(), _named(f"stage {index}, child {start}", child):
                    given = profile.meta_of(child(profile.empty(given)))
                trained = source == "trained" or any(p.requires_grad for p in child.parameters())
                source = "trained" if trained else "frozen"
            for handle in handles:
                handle.remove()
            once = frozenset(node for node in nodes if calls[node] == 1)
            yield from ((place, _Seen(met, origin, once)) for place, met, origin in places)
        yield (len(self._chains), 0), _Seen(given, source, frozenset())

    def _widths(self, layout: Layout) -> list[int | None]:
        places = [(segment.stage, segment.start) for segment in layout]
        bounds = input_bounds(self.module(segment) for segment in layout)
        rules = [width_under(self._setting.compressor, bound) for bound in bounds]
        return [self._setting.measured.get(place, rule) for place, rule in zip(places, rules, strict=True)]

    def _autocast(self) -> torch.autocast:
        enabled, dtype = self._setting.amp
        return torch.autocast(self._setting.given[3].type, dtype=dtype, enabled=enabled)


@contextlib.contextmanager
def _named(place: str, module: nn.Module) -> Iterator[None]:
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
