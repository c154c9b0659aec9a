"""Chooses how every layer runs: least estimated work under a budget of bytes, exact over the layers' modes.

What a layer keeps is alive in every later forward and every earlier backward, so a choice is a path through the layers
with two numbers, bytes kept so far and work so far. A dynamic programme over the layers carries all paths that no other
beats in both; those that would exceed the budget at the layer are dropped. The chosen plan is run as a whole under fake
tensors, and the programme repeated with less where the step's true peak is above the budget.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from harness.contracts import Loss, StagedModel, reset_states
from harness.ledger import Ledger
from methods import _profile as profile
from methods._architecture import copied
from methods._measure import faking
from methods._twin import Autocast, Memory, copy_of
from methods.streaming.costs import Costs, modes_of
from methods.streaming.parse import Program, parse
from methods.streaming.run import Kept, Plan, Widths, run
from methods.streaming.unit import Mode
from methods.widths import output_bound, width_of

LABELS = 4096
"""Paths carried from layer to layer (our choice; beyond them the programme is no longer exact)."""
ATTEMPTS = 8
"""Times that a plan above its budget is planned again with less (our choice)."""
TOLERANCE, SLACK = 0.02, 256 << 10
"""``min`` takes the least work within this part of the smallest possible peak, or so many bytes if that is more (our
choice). Without it a net of a few hundred kilobytes ran sample by sample, 14 times slower than BPTT, to save a few."""
SEGMENT, SHARE = 2 << 20, 16
"""``min`` takes as many bytes more as CUDA's caching allocator reserves at once for small blocks, and rounds large ones to
(``kSmallBuffer``, ``kRoundLarge`` in ``c10/cuda/CUDACachingAllocator.cpp``): fewer cannot be seen in reserved memory. But
never more than this part of BPTT's peak (our choice), so that what is saved on a small net stays most of it."""
CACHED_PLANS = 256
"""How many plans a process remembers (our choice): a cell prepares the same model several times."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_BUDGET = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*")


@dataclass(frozen=True)
class Budget:
    """What a step may hold.

    Args:
        bytes: at most so many, with parameters, buffers, gradients and inputs, without optimizer state.
        fraction: or at most this part of what BPTT holds; neither: as little as is worth its work (:data:`TOLERANCE`,
            :data:`SEGMENT`).
    """

    bytes: int | None = None
    fraction: float | None = None

    @classmethod
    def of(cls, text: str) -> Budget:
        """From ``min``, ``0.5x`` or ``8GiB``.

        Raises:
            ValueError: neither of them.
        """
        if text.lower() == "min":
            return cls()
        match = _BUDGET.fullmatch(text)
        if match and match[2] in ("x", "X") and float(match[1]) > 0:
            return cls(fraction=float(match[1]))
        if match and match[2].upper() in _UNITS and (size := int(float(match[1]) * _UNITS[match[2].upper()])) > 0:
            return cls(bytes=size)
        units = "B, KB, MB, GB, KiB, MiB or GiB"
        raise ValueError(
            f"budget {text!r}: give 'min', a part of BPTT's peak as in '0.5x', or bytes as in '8GiB' ({units})"
        )


@dataclass(frozen=True)
class Chosen:
    """A plan and what it costs.

    Args:
        modes: of every step of the program.
        peak_bytes: most bytes live in a training step, without optimizer state: a whole step under fake tensors.
        budget_bytes: what it had to stay below; None for ``min``.
        smallest_bytes: the smallest possible peak: under ``min`` that of a whole step, otherwise what its layers add up
            to.
        added: estimated work beyond that of BPTT with the same neuron kernel, in bytes that could be moved meanwhile.
    """

    modes: tuple[Mode, ...]
    peak_bytes: int
    budget_bytes: int | None
    smallest_bytes: int
    added: float


class TooSmall(ValueError):
    """No plan meets the budget; the message has the smallest possible."""


_PLANS = Memory(CACHED_PLANS)


def rule_widths(program: Program) -> Widths:
    """Bits an element of every value; 0: as it is, None: only values can tell."""
    bounds: dict[int, float | None] = {0: float("inf")}
    for step in program.steps:
        given = [bounds[value] for value in step.inputs]
        if step.kind == "unit":
            bounds[step.out] = float("inf") if step.unit is None or step.unit.node is None else 1
        elif step.kind == "add":
            bounds[step.out] = None if None in given else sum(given)  # type: ignore[arg-type]
        else:
            assert step.module is not None
            bounds[step.out] = output_bound(step.module, given[0])
    count = 1 + max(bounds)
    return [width_of(bounds[value]) if value in bounds else 0 for value in range(count)]


def plan(model: StagedModel, x: Tensor, loss: Loss, budget: Budget, widths: Widths, amp: Autocast) -> Chosen:
    """Choose the modes of a model's layers.

    Args:
        model: in the mode it will train in, its states reset; not run: a fake copy is.
        x: one batch ``[T, N, ...]``, real or fake.
        loss: the objective.
        budget: what a step may hold.
        widths: bits an element of every value of the program; None where only values can tell.
        amp: whether autocast is on, and its dtype.

    Raises:
        TooSmall: no plan meets the budget.
        DataDependentOutputException: a forward depends on values.
        DynamicOutputShapeException: a shape does.
    """
    key = profile.structure(model), profile.meta_of(x), loss.kind, repr(loss.criterion), budget, tuple(widths), amp
    if key not in _PLANS:
        with faking() as mode:
            _PLANS.put(key, _Planner(model, profile.meta_of(x), loss, widths, amp, mode).run(budget))
    return _PLANS[key]


class _Planner:
    def __init__(
        self, model: StagedModel, given: profile.Meta, loss: Loss, widths: Widths, amp: Autocast, mode: FakeTensorMode
    ) -> None:
        self._model = copy_of(model, mode)
        self._loss, self._amp, self._widths = Loss(loss.kind, loss.criterion), amp, widths
        self._given = given
        self._x = profile.empty(given)
        self._target = torch.zeros(given[0][1], dtype=torch.int64, device=given[3])
        self._program = parse(self._model)
        reset_states(self._model)
        self._dtype = amp[1] if amp[0] else None
        with unset_fake_temporarily():
            self._bare = copied(self._model, _on_meta)
            reset_states(self._bare)
            bare = parse(self._bare)
        self._costs = Costs(self._program, bare, self._x, widths, self._dtype)
        self._head, self._static = self._head_cost(), self._static_bytes()
        self._peaks: dict[tuple[Mode, ...], int] = {}

    def run(self, budget: Budget) -> Chosen:
        """The plan for a budget.

        Raises:
            TooSmall: there is none.
        """
        smallest = self._smallest()
        if budget.bytes is None and budget.fraction is None:
            return self._least(smallest)
        limit = budget.bytes or 0
        if budget.fraction is not None:
            limit = int(budget.fraction * self._bptt())
        found = self._within(limit, max(limit, smallest), smallest)
        if isinstance(found, int):
            raise TooSmall(f"the budget of {limit} bytes is below the smallest peak of this model, {found} bytes")
        return Chosen(*found, limit, smallest, self._added(found[0]))

    def _least(self, smallest: int) -> Chosen:
        """Close to the smallest possible peak, with the least work."""
        modes = self._least_work(smallest)
        least = self.exact(modes)
        slack = max(int(TOLERANCE * least), SLACK)
        if slack < SEGMENT:
            slack = max(slack, min(SEGMENT, self._bptt() // SHARE))
        found = self._within(least + slack, smallest + slack, smallest)
        modes, peak = (modes, least) if isinstance(found, int) else found
        return Chosen(modes, peak, None, least, self._added(modes))

    def _within(self, limit: int, aim: int, smallest: int) -> tuple[tuple[Mode, ...], int] | int:
        """The modes of least work whose whole step stays below ``limit``, and its peak; or the last peak above it.

        Args:
            limit: bytes of a whole step.
            aim: what the layers may add up to; less where the step turns out to be above the limit.
            smallest: the least they can add up to.
        """
        for _ in range(ATTEMPTS):
            modes = self._least_work(aim)
            peak = self.exact(modes)
            if peak <= limit:
                return modes, peak
            if aim == smallest:
                break
            aim = max(smallest, aim - (peak - limit))
        return peak

    def _added(self, modes: tuple[Mode, ...]) -> float:
        return sum(self._costs.added(index, mode) for index, mode in enumerate(modes))

    def exact(self, modes: tuple[Mode, ...]) -> int:
        """Peak of a whole step under the ledger, with parameters, buffers and inputs."""
        if modes in self._peaks:
            return self._peaks[modes]
        widths: Widths = [0 if width is None else width for width in self._widths]

        def logits(x: Tensor) -> Tensor:
            counts = torch.zeros(len(widths), dtype=torch.int64, device=x.device)
            found = Plan(self._program, list(modes))
            return self._model.head(run(found, x, Kept(widths, counts, {}), self._dtype))

        self._peaks[modes] = self._peak(logits)
        return self._peaks[modes]

    def _bptt(self) -> int:
        return self._peak(self._model)

    def _peak(self, forward: Callable[[Tensor], Tensor]) -> int:
        reset_states(self._model)
        torch.clear_autocast_cache()
        ledger = Ledger(self._model, self._x.device.type)
        ledger.register("inputs", [self._x, self._target])
        with ledger, self._autocast():
            # As a method's step: logits and loss live until the backward is over.
            logits = forward(self._x)
            value = self._loss(logits, self._target)
            self._loss.backward(value)
            del logits, value
        for parameter in self._model.parameters():
            parameter.grad = None
        reset_states(self._model)
        torch.clear_autocast_cache()
        return ledger.report().peak_bytes

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._given[3].type, dtype=self._amp[1], enabled=self._amp[0])

    def _head_cost(self) -> profile.Cost:
        meta = self._costs.values[self._program.out]
        x = torch.empty(meta.shape, dtype=meta.dtype, device=self._given[3])
        trained = "trained" if self._costs.needs[self._program.out] else "frozen"
        with self._autocast():
            return profile.measure(
                self._model.head,
                lambda h: self._loss(self._model.head(h), self._target),
                profile.meta_of(x),
                trained,  # type: ignore[arg-type]
            )[0]

    def _static_bytes(self) -> int:
        ledger = Ledger(self._model, self._x.device.type)
        ledger.register("inputs", [self._x, self._target])
        return ledger.live

    def _bases(self, index: int) -> tuple[int, int]:
        """Bytes that live when a step's forward, and its backward, starts, without what modes keep."""
        costs = self._costs
        forward = self._static + costs.values_alive[0][index]
        later = costs.parameters_alive[index + 1] + self._head.gradients
        backward = self._static + costs.values_alive[1][index] + costs.gradients_alive[index] + later
        return forward, backward

    def _around(self) -> int:
        """Peak while the head runs, without what modes keep."""
        values = self._costs.values_alive[0][len(self._program.steps)]
        return self._static + values + max(self._head.forward, self._head.backward)

    def _smallest(self) -> int:
        peak = self._around()
        least = 0
        for index, step in enumerate(self._program.steps):
            forward, backward = self._bases(index)
            found = [self._costs.cost(index, mode) for mode in modes_of(step, self._x.shape[1])]
            kept = min(cost.kept for cost in found)
            peak = max(
                peak,
                min(
                    max(forward + least + c.forward, backward + least + c.kept + c.backward)
                    for c in found
                    if c.kept == kept
                ),
            )
            least += kept
        return max(peak, self._around() + least)

    def _least_work(self, limit: int) -> tuple[Mode, ...]:
        """The dynamic programme."""
        labels: list[tuple[int, float, tuple[Mode, ...]]] = [(0, 0.0, ())]
        for index, step in enumerate(self._program.steps):
            forward, backward = self._bases(index)
            found = []
            for mode in modes_of(step, self._x.shape[1]):
                cost = self._costs.cost(index, mode)
                for kept, work, path in labels:
                    fits = forward + kept + cost.forward <= limit
                    if fits and backward + kept + cost.kept + cost.backward <= limit:
                        found.append((kept + cost.kept, work + cost.work, (*path, mode)))
            labels = _unbeaten(found)
        around = self._around()
        fitting = [label for label in labels if around + label[0] <= limit]
        if not fitting:
            raise TooSmall(f"no plan of this model stays below {limit} bytes")
        return min(fitting, key=lambda label: label[1])[2]


def _on_meta(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _unbeaten(labels: list[tuple[int, float, tuple[Mode, ...]]]) -> list[tuple[int, float, tuple[Mode, ...]]]:
    """Those that no other beats in both bytes and work."""
    best, found = float("inf"), []
    for label in sorted(labels, key=lambda label: label[:2]):
        if label[1] < best:
            best = label[1]
            found.append(label)
    if len(found) > LABELS:
        step = len(found) / LABELS
        found = [found[int(i * step)] for i in range(LABELS)]
    return found
