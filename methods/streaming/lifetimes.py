"""What lives when in a step: packed values, and who holds which gradient; from a program alone, nothing runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.ledger import BLOCK
from methods.streaming.ops import Gradients
from methods.streaming.parse import Program
from methods.streaming.rows import Rows, run_length
from methods.streaming.run import Gradient, Kept, Plan, Trace, needed_until, readers
from methods.streaming.unit import Mode

META = torch.device("meta")


@dataclass(frozen=True)
class Value:
    """What a value is like when kept.

    Args:
        width: bits an element.
        shape: ``[T, N, ...]``.
        dtype: of the value.
    """

    width: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def rows(self, device: torch.device) -> Rows:
        """Room for it."""
        return Rows.empty(self.width, self.shape, self.dtype, device)

    def bytes(self) -> int:
        """When kept."""
        if self.width == 0:
            return self.dense()
        return rounded(self.shape[0] * self.shape[1] * self.width * run_length(self.shape))

    def dense(self) -> int:
        """As a tensor."""
        return rounded(math.prod(self.shape) * self.dtype.itemsize)


def rounded(size: int) -> int:
    """As the ledger counts it."""
    return -(-size // BLOCK) * BLOCK


def values_alive(program: Program, values: dict[int, Value], needs: list[bool]) -> tuple[list[int], list[int]]:
    """Bytes of values alive when each step's forward, and its backward, starts; the network's input is no part."""
    until, reads, count = needed_until(program, needs), readers(program), len(program.steps)
    forward, backward = [0] * (count + 1), [0] * (count + 1)
    for born, step in enumerate(program.steps):
        size, last = values[step.out].bytes(), max(reads.get(step.out, [born]))
        if step.out == program.out:
            continue
        stays = step.out in until
        for index in range(born + 1, count + 1):
            forward[index] += size if stays or index <= last else 0
        for index in range(until[step.out] if stays else count + 1, count + 1):
            backward[index] += size
    return forward, backward


Held = dict[int, Gradient]


class _Pretend(Trace):
    """The run's own bookkeeping of gradients, without the arithmetic."""

    values_like: dict[int, Tensor]

    def through(self, index: int, saved: Any, grad: Tensor, owned: bool, given: Any, into: Gradients) -> Tensor | None:
        """See :meth:`Trace.through`."""
        value = self._plan.program.steps[index].inputs[0]
        if given is not None:
            return given
        return torch.empty_like(self.values_like[value]) if self.needs[value] else None

    def _blank(self, value: int) -> Tensor:
        return torch.empty_like(self.values_like[value])


def holders(program: Program, values: dict[int, Value], kept: Kept) -> list[Held]:
    """Who holds which gradient when each step's backward starts."""
    trace = _Pretend(Plan(program, [Mode()] * len(program.steps)), kept, None, False)
    trace.values_like = {v: torch.empty(meta.shape, dtype=meta.dtype, device=META) for v, meta in values.items()}
    trace.shapes = {v: meta.shape for v, meta in values.items()}
    grads, found = {program.out: Gradient(trace.values_like[program.out])}, list[Held]()
    for index in reversed(range(len(program.steps))):
        copies = {id(g): Gradient(g.tensor) for g in grads.values()}
        for g in grads.values():
            copies[id(g)].holders = g.holders
        found.append({value: copies[id(g)] for value, g in grads.items()})
        trace.step_backward(index, grads, Gradients())
    return found[::-1]


def distinct(held: Held, values: dict[int, Value]) -> int:
    """Bytes of gradients, shared ones once."""
    return sum({id(g): values[value].dense() for value, g in held.items()}.values())
