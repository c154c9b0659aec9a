"""What a part of a training step costs, from the ledger under fake tensors: no arithmetic, no device, no subprocess.

The peak of a step is put together from its parts, which follow each other once forwards and once backwards::

    forward of i:   kept[0] + .. + kept[i-1] + forward[i]
    backward of i:  kept[0] + .. + kept[i-1] + backward[i] + gradients[i+1] + .. + gradients[last]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from harness.contracts import reset_states
from harness.ledger import Ledger

FLOPS_PER_BYTE = 10.0
"""Multiply-adds that take as long as moving a byte, to weigh convolutions against elementwise work. Processors and
accelerators lie between 5 and 20 in float32 (our choice: only the order of stages depends on it)."""

Meta = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]
"""Shape, stride, dtype and device of a tensor."""
Source = Literal["data", "frozen", "trained"]
"""The network's own input, there before; or the output of a part without or with parameters to train before it."""


@dataclass(frozen=True)
class Cost:
    """Bytes of one part of a step, beyond what lived before it.

    Args:
        forward: most live during its forward, its input included.
        kept: live after its forward, without its output.
        backward: most live during its backward, with what it kept, its output's gradient and its input's.
        gradients: gradients of parameters that it leaves.
    """

    forward: int
    kept: int
    backward: int
    gradients: int


def compose(costs: Sequence[Cost]) -> tuple[int, int]:
    """Peak bytes of a step beyond what is there before it, and the index of the part that reaches it."""
    best, where, kept, gradients = 0, 0, 0, 0
    for index, cost in enumerate(costs):
        best, where = max((best, where), (kept + cost.forward, index), key=_bytes)
        kept += cost.kept
    for index in reversed(range(len(costs))):
        kept -= costs[index].kept
        best, where = max((best, where), (kept + gradients + costs[index].backward, index), key=_bytes)
        gradients += costs[index].gradients
    return best, where


@dataclass(frozen=True)
class Given:
    """An input of a part.

    Args:
        meta: what it is like.
        source: where it comes from.
        slot: where it is kept, if it is kept already.
    """

    meta: Meta
    source: Source
    slot: int | None = None


def measure(module: nn.Module, run: Callable[[Tensor], Tensor], given: Meta, source: Source) -> tuple[Cost, Meta]:
    """Cost and output of one part with one input.

    Args:
        module: fake; its parameters are there before and their gradients are counted.
        run: the part, on its input.
        given: its input.
        source: where the input comes from.
    """
    return measure_many(module, lambda inputs: run(inputs.pop()), [Given(given, source)])


def measure_many(
    module: nn.Module,
    run: Callable[[list[Tensor]], Tensor],
    given: Sequence[Given],
    keep: Callable[[int, Tensor], object] | None = None,
) -> tuple[Cost, Meta]:
    """Cost and output of one part.

    Args:
        module: fake; its parameters are there before and their gradients are counted.
        run: the part, on a list of its inputs, which it may empty.
        given: its inputs.
        keep: what keeps them, where some are kept already: they are there before.
    """
    reset_states(module)
    torch.clear_autocast_cache()
    ledger = Ledger(module, given[0].meta[3].type)
    data = [empty(one.meta) if one.source == "data" else None for one in given]
    ledger.register("inputs", data)
    with ledger:
        kept_before = [keep(one.slot, empty(one.meta)) for one in given if keep and one.slot is not None]
        before = ledger.live
        sink: list[Meta] = []
        start = len(ledger.report().timeline)
        end = _Sink.apply(run([_input(one, x) for one, x in zip(given, data, strict=True)]), sink)
        turn = len(ledger.report().timeline)
        kept = ledger.live - before
        if end.requires_grad:
            end.backward()
        gradients = ledger.live - before
        del kept_before
    timeline = ledger.report().timeline
    for parameter in module.parameters():
        parameter.grad = None
    torch.clear_autocast_cache()
    most = max(timeline[start:turn], default=before)
    return Cost(most - before, kept, max(timeline[turn - 1 :]) - before, gradients), sink[0]


def empty(meta: Meta) -> Tensor:
    """A tensor like that."""
    shape, stride, dtype, device = meta
    return torch.empty_strided(shape, stride, dtype=dtype, device=device)


def meta_of(x: Tensor) -> Meta:
    """What a tensor is like."""
    return tuple(x.shape), x.stride(), x.dtype, x.device


def seconds(run: Callable[[], object]) -> float:
    """Time of a forward in arbitrary units, **estimated**: nothing is measured on a device.

    FLOPs of what torch has a formula for, and the bytes that every operator reads and writes: elementwise work, which
    torch's flop counter counts as zero, is most of what a spiking neuron does.
    """
    with _Work() as work, torch.no_grad():
        run()
    return work.flops / FLOPS_PER_BYTE + work.bytes


def structure(module: nn.Module) -> Hashable:
    """Equal for modules that cost the same."""
    return tuple((name, type(child), child.training, *_facts(child)) for name, child in module.named_modules())


def _facts(module: nn.Module) -> list[Hashable]:
    tensors = [(name, tuple(t.shape), t.dtype, t.requires_grad) for name, t in module.named_parameters(recurse=False)]
    buffers = [(name, tuple(t.shape), t.dtype) for name, t in module.named_buffers(recurse=False)]
    plain = (bool, int, float, str, type(None), tuple)
    hidden = [(k, repr(v)) for k, v in vars(module).items() if not k.startswith("_") and isinstance(v, plain)]
    return [tuple(tensors), tuple(buffers), tuple(hidden), module.extra_repr()]


def _input(given: Given, data: Tensor | None) -> Tensor:
    """The network's input, or what stands for all parts before."""
    if data is not None:
        return data
    anchor = torch.empty(0, device=given.meta[3], requires_grad=given.source == "trained")
    return _Source.apply(anchor, given.meta)


class _Source(torch.autograd.Function):
    """Stands for all parts before: gives an input, takes its gradient."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, given: Meta) -> Tensor:
        return empty(given)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        return None, None


class _Sink(torch.autograd.Function):
    """Stands for all parts after: takes an output, gives its gradient."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, sink: list[Meta]) -> Tensor:
        ctx.meta = meta_of(out)
        sink.append(ctx.meta)
        return torch.empty((), device=out.device)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return empty(ctx.meta), None


class _Work(TorchDispatchMode):
    """Adds up FLOPs and bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        # a fake tensor's device is asked for by an operator, which reads no value
        if not func.is_view and func._overloadpacket is not torch.ops.prim.device:
            self.bytes += sum(_size(value) for value in tree_leaves((args, kwargs, out)))
        return out


def _size(value: Any) -> int:
    return math.prod(value.shape) * value.element_size() if isinstance(value, Tensor) else 0


def _bytes(found: tuple[int, int]) -> int:
    return found[0]
