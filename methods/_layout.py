"""How stages are cut into segments: which cuts exist, and which parts may run in pieces of time.

A stage is a program of steps (:mod:`methods._program`): the children of an ``nn.Sequential``, and what a residual or
transformer block calls inside. It can be cut between any two steps where one tensor leaves what is before the cut, so
that a part has one output; it may read several values, of which the shortcut's is one. A block whose forward is no such
program is one step. Its neurons can be segments inside its recompute, whatever lies between.

What several parts of a stage read is kept once. A part that only adds or gives another shape keeps nothing.

Only what works on every time step by itself and gives the same bits for any number of them may run in pieces of time:
SpikingJelly's basic neurons, whose membranes are carried over, and pooling. Weights would give other roundings for
another number of samples, batch normalisation other statistics, dropout other masks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from spikingjelly.activation_based import base, layer, neuron
from torch import nn

from harness.contracts import StagedModel
from methods._nodes import INPUT
from methods._program import Piece, Program
from methods.bptt_fused import FUSED
from methods.widths import Bound, output_bound

NEURONS = (neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode, *FUSED.values())
"""Neurons whose step depends on the last membrane and the input only; a subclass may not keep to that."""
_POOLING = (
    layer.MaxPool1d, layer.MaxPool2d, layer.MaxPool3d, layer.AvgPool1d, layer.AvgPool2d, layer.AvgPool3d,
    layer.AdaptiveAvgPool1d, layer.AdaptiveAvgPool2d, layer.AdaptiveAvgPool3d,
)  # fmt: skip


@dataclass(frozen=True)
class Segment:
    """A part of a stage, and how it runs.

    Args:
        stage: index of the stage.
        start: first step of the stage's program.
        stop: one past the last step.
        chunks: pieces of time that it runs in.
        inner: pieces of time of each neuron inside, as a segment of its own in the recompute; 0: neurons are not apart.
        plain: not checkpointed: autograd keeps what it needs.
    """

    stage: int
    start: int = 0
    stop: int = 1
    chunks: int = 1
    inner: int = 0
    plain: bool = False


Layout = list[Segment]
"""The segments of a model, in order."""


class Part(NamedTuple):
    """A segment and what it runs.

    Args:
        segment: it.
        module: of its steps; the stage itself where it is whole. A :class:`~methods._program.Piece` takes all that it
            reads, any other module one tensor.
        reads: numbers of the tensors of the stage that it reads.
        out: of the one that it writes.
        slots: where the tensors are kept, counted over the whole model.
        told: numbers of what it reads besides tensors.
        drops: what nobody reads after it.
        free: it keeps nothing for its backward.
    """

    segment: Segment
    module: nn.Module
    reads: tuple[int, ...] = (INPUT,)
    out: int = INPUT + 1
    slots: tuple[int, ...] = (0,)
    told: tuple[int, ...] = ()
    drops: frozenset[int] = frozenset((INPUT,))
    free: bool = False


def programs(stages: Iterable[nn.Module]) -> list[Program]:
    """Of all stages."""
    return [Program(stage) for stage in stages]


def whole(found: Sequence[Program]) -> Layout:
    """Every stage as one segment."""
    return [Segment(index, 0, len(program.steps)) for index, program in enumerate(found)]


def stages_as_parts(stages: nn.Sequential) -> list[Part]:
    """Every stage as one part; nothing needs to be known about its inside."""
    return [Part(Segment(index), stage, slots=(index,)) for index, stage in enumerate(stages)]


def part(stage: nn.Module, program: Program, segment: Segment) -> Part:
    """A segment of a stage with its modules, its slots counted from 0.

    Raises:
        ValueError: the segment does not write one tensor.
    """
    steps, ends = program.steps[segment.start : segment.stop], program.ends(segment.start, segment.stop)
    if ends is None:
        raise ValueError(f"the plan's {segment} does not write one tensor in a model of this structure")
    drops = program.dropped(segment.start, segment.stop)
    slots = tuple(range(len(ends.reads)))
    if len(steps) == len(program.steps):
        return Part(segment, stage, ends.reads, ends.out, slots, (), drops)
    nodes = [node for step in steps for node in step]
    free = all(node.views or node.sums or node.told for node in nodes)
    inside = [node.target for node in nodes if isinstance(node.target, nn.Module) and len(node.reads) == 1]
    in_line = [node.reads for node in nodes] == [(ends.reads[0],), *((node.out,) for node in nodes[:-1])]
    if len(inside) == len(nodes) and in_line:
        module = inside[0] if len(inside) == 1 else nn.Sequential(*inside)
        return Part(segment, module, ends.reads, ends.out, slots, (), drops, free)
    return Part(segment, Piece(steps, ends), ends.reads, ends.out, slots, ends.told, drops, free)


def parts(model: StagedModel, segments: Layout, found: Sequence[Program] | None = None) -> list[Part]:
    """All segments of a model with their modules.

    Raises:
        ValueError: the segments are not those of this model's stages, each step in one of them, in order.
    """
    known = programs(model.stages) if found is None else found
    end = (0, 0)
    lengths = [len(program.steps) for program in known]
    result, slots = list[Part](), dict[tuple[int, int], int]()
    for segment in segments:
        start = (end[0] + 1, 0) if end[0] < len(lengths) and end[1] == lengths[end[0]] else end
        fits = start[0] < len(lengths) and segment.start < segment.stop <= lengths[start[0]]
        if (segment.stage, segment.start) != start or not fits:
            raise ValueError(f"the plan's {segment} does not follow on the one before it in a model of this structure")
        end = (segment.stage, segment.stop)
        new = part(model.stages[segment.stage], known[segment.stage], segment)
        taken = tuple(slots.setdefault((segment.stage, number), len(slots)) for number in new.reads)
        result.append(new._replace(slots=taken))
    if end != (len(lengths) - 1, lengths[-1]):
        raise ValueError(f"the plan has segments up to stage {end[0]}, but the model has {len(lengths)} stages")
    return result


def places(found: Iterable[Part]) -> list[tuple[int, int]]:
    """Stage and number of the value in each slot."""
    kept = {slot: (p.segment.stage, number) for p in found for slot, number in zip(p.slots, p.reads, strict=True)}
    return [kept[slot] for slot in range(len(kept))]


def value_bounds(stages: Iterable[nn.Module], found: Iterable[Program]) -> list[dict[int, Bound]]:
    """Bound of every value of every stage; ``inf`` for what is still the network's own input (:mod:`methods.widths`)."""
    result, bound, data = list[dict[int, Bound]](), None, True
    for stage, program in zip(stages, found, strict=True):
        bounds, own = program.bounds(bound, data)
        out = program.nodes[-1].out
        if bounds[out] is None:
            bounds[out] = output_bound(stage, bound)
        result.append({number: math.inf if own[number] else value for number, value in bounds.items()})
        bound, data = bounds[out], own[out]
    return result


def can_cut(program: Program) -> bool:
    """False where two steps share a state, which would have to pass between segments."""
    inside = [{inner for node in step for inner in _stateful(node.target)} for step in program.steps]
    owners = Counter(node for nodes in inside for node in nodes)
    return not any(count > 1 for count in owners.values())


def in_time(module: nn.Module) -> bool:
    """True if the module may run in pieces of time: bit for bit the same, states carried over."""
    modules = _chain(module)
    if len(set(modules)) < len(modules):
        return False
    pooling = [child for child in modules if type(child) in _POOLING]
    known = all(type(child) is nn.Identity or child in pooling or _steps(child) for child in modules)
    return known and all(child.step_mode == "m" for child in pooling)


def neurons(module: nn.Module) -> list[base.MemoryModule]:
    """The neurons inside a module that may be segments of their own."""
    return [child for child in module.modules() if _steps(child)]


def _chain(module: nn.Module) -> list[nn.Module]:
    if type(module) is not nn.Sequential or not len(module):
        return [module]
    return [inner for child in module for inner in _chain(child)]


def _steps(module: nn.Module) -> bool:
    if type(module) not in NEURONS:
        return False
    # A recorded sequence would be that of the last piece.
    return module.step_mode == "m" and not module.store_v_seq


def _stateful(module: object) -> list[nn.Module]:
    found = module.modules() if isinstance(module, nn.Module) else ()
    return [child for child in found if isinstance(child, base.MemoryModule)]
