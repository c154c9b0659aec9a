"""How stages are cut into segments: which cuts exist, and which parts may run in pieces of time.

A stage that is an ``nn.Sequential`` is a chain of its children and can be cut between any two of them. Any other module
is one piece: nothing is known of its forward. Its neurons can be segments inside its recompute, whatever lies between.

Only what works on every time step by itself and gives the same bits for any number of them may run in pieces of time:
SpikingJelly's basic neurons, whose membranes are carried over, and pooling. Weights would give other roundings for
another number of samples, batch normalisation other statistics, dropout other masks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from spikingjelly.activation_based import base, layer, neuron
from torch import nn

from harness.contracts import StagedModel
from methods.bptt_fused import FUSED

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
        start: first child of the stage's chain.
        stop: one past the last child.
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
Part = tuple[Segment, nn.Module]
"""A segment and the modules that it runs."""


def chain(stage: nn.Module) -> list[nn.Module]:
    """The modules that a stage applies one after the other."""
    if type(stage) is not nn.Sequential or not len(stage):
        return [stage]
    return [inner for child in stage for inner in chain(child)]


def whole(stages: nn.Sequential) -> Layout:
    """Every stage as one segment."""
    return [Segment(index, 0, len(chain(stage))) for index, stage in enumerate(stages)]


def part(stage: nn.Module, segment: Segment) -> Part:
    """A segment of a stage with its modules; a whole stage is the stage itself."""
    modules = chain(stage)
    if segment.start == 0 and segment.stop == len(modules):
        return segment, stage
    inside = modules[segment.start : segment.stop]
    return segment, inside[0] if len(inside) == 1 else nn.Sequential(*inside)


def parts(model: StagedModel, segments: Layout) -> list[Part]:
    """All segments of a model with their modules.

    Raises:
        ValueError: the segments are not those of this model's stages, each child in one of them, in order.
    """
    end = (0, 0)
    lengths = [len(chain(stage)) for stage in model.stages]
    for segment in segments:
        start = (end[0] + 1, 0) if end[0] < len(lengths) and end[1] == lengths[end[0]] else end
        if (segment.stage, segment.start) != start or not segment.start < segment.stop <= lengths[segment.stage]:
            raise ValueError(f"the plan's {segment} does not follow on the one before it in a model of this structure")
        end = (segment.stage, segment.stop)
    if end != (len(lengths) - 1, lengths[-1]):
        raise ValueError(f"the plan has segments up to stage {end[0]}, but the model has {len(lengths)} stages")
    return [part(model.stages[segment.stage], segment) for segment in segments]


def can_cut(stage: nn.Module) -> bool:
    """False where two children share a state, which would have to pass between segments."""
    owners = Counter(node for child in chain(stage) for node in set(_stateful(child)))
    return not any(count > 1 for count in owners.values())


def in_time(module: nn.Module) -> bool:
    """True if the module may run in pieces of time: bit for bit the same, states carried over."""
    modules = chain(module)
    if len(set(modules)) < len(modules):
        return False
    pooling = [child for child in modules if type(child) in _POOLING]
    known = all(type(child) is nn.Identity or child in pooling or _steps(child) for child in modules)
    return known and all(child.step_mode == "m" for child in pooling)


def neurons(module: nn.Module) -> list[base.MemoryModule]:
    """The neurons inside a module that may be segments of their own."""
    return [child for child in module.modules() if _steps(child)]


def _steps(module: nn.Module) -> bool:
    if type(module) not in NEURONS:
        return False
    # A recorded sequence would be that of the last piece.
    return module.step_mode == "m" and not module.store_v_seq


def _stateful(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.modules() if isinstance(child, base.MemoryModule)]
