"""From any ``nn.Module`` to a :class:`StagedModel` in multi-step mode: SpikingJelly's networks, and plain torch ones.

What a network takes is found by running it. In the order in which they are tried: one frame ``[N, ...]`` that it repeats
over ``T`` itself; whole sequences ``[T, N, ...]``, in the step modes that it has, or in SpikingJelly's multi-step mode, if
need be after its plain torch layers became SpikingJelly's (same weights, same arithmetic, applied to all steps at once);
or else one step ``[N, ...]`` after the other. Its neurons tell which one is right: each has to run over ``T`` steps.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from spikingjelly.activation_based import base, functional, layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.contracts import Normalisation, StagedModel
from harness.errors import UsageError
from harness.plan.staging import Staged, differs, stages_of
from harness.plan.trying import attempt, kept_states, modes_of, put_back, run, set_mode, untouched
from harness.plan.ways import Found, Stepwise, Trial, Way, convert
from harness.plan.wrapping import Place, Restarted, Sequences, Still, ToSequence, Whole, detached

M = TypeVar("M", bound=nn.Module)
SAMPLES = 2
"""Samples of the random input that a model is tried on; one more where that is ``T``, so that nobody mixes them up."""


@dataclass(frozen=True)
class Decision:
    """What was found out about a model, so that the next one from the same factory needs no trial.

    Args:
        way: how it takes its input.
        time_mean: it gives ``[N, K]``.
        classes: ``K``.
        whole: why it is one stage; None where it has stages of its own.
        notes: what to tell.
        fixed: it keeps its step modes: a loop over time is its own.
        steps: ``T``, where it repeats a frame so often.
        states: attributes in which it keeps states that SpikingJelly does not know of.
        single: where it is one stage in multi-step mode: it runs in single-step mode, too.
    """

    way: Way
    time_mean: bool
    classes: int
    whole: str | None
    notes: tuple[str, ...]
    fixed: bool = False
    steps: int = 0
    states: tuple[Place, ...] = ()
    single: bool = True


def decide(model: nn.Module, sample: tuple[int, ...], steps: int, stages: str | None = None) -> Decision:
    """Find out how ``model`` runs and whether it can be cut; ``model`` is changed as :func:`adopt` would.

    Args:
        model: as its author built it.
        sample: shape of one time step of one sample.
        steps: ``T``.
        stages: globs of module names that are stages.

    Raises:
        UsageError: it does not run on this input, or the pattern is wrong.
    """
    samples = SAMPLES + (steps == SAMPLES)
    x = torch.rand(steps, samples, *sample, generator=torch.Generator().manual_seed(0))
    x = x.to(next(iter(model.parameters()), x).device)
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if kinds:
        raise UsageError(
            f"the model's parameters are {', '.join(sorted(map(str, kinds)))}: give it in float32 (model.float()); "
            "--precision asks for other arithmetic"
        )
    if isinstance(model, StagedModel):
        out = run(model, x)
        return Decision("sequence", False, out.shape[-1], None, ("a StagedModel: its own stages",))
    found = Trial(model, x).found()
    notes = list(found.notes)
    time_mean = found.out.dim() == 2
    if time_mean:
        notes.append("its output has no time: loss time_mean, and methods that need a loss at every step are left out")
    states = _states(model, found, x, notes)
    decision = Decision(found.way, time_mean, found.out.shape[-1], None, (), found.fixed, steps, states)
    whole = _whole(model, decision, x, stages, notes)
    single = whole is None or found.way != "sequence" or found.fixed or bool(states) or _single(model, x)
    return replace(decision, whole=whole, notes=tuple(notes), single=single)


def _single(model: nn.Module, x: Tensor) -> bool:
    """Whether a model in multi-step mode runs in single-step mode as well."""
    modes = modes_of(model)
    out = attempt(Stepwise(model), x, evaluate=True)[0] if set_mode(model, "s") else None
    put_back(modes)
    return out is not None and out.shape[:2] == x.shape[:2]


def _states(model: nn.Module, found: Found, x: Tensor, notes: list[str]) -> tuple[Place, ...]:
    """Where the model keeps states of its own.

    Raises:
        UsageError: they cannot be found.
    """
    body = _through(model, found.way, found.fixed, True)
    if found.way == "static":
        body = nn.Sequential(Still(len(x)), body)
    with untouched(body):
        states, differs_twice = kept_states(model, lambda: run(body.eval(), x), x.shape[1])
    if differs_twice and not states:
        raise UsageError(
            "the model's output differs from run to run, on the same input and from the same random state: it keeps "
            "a state where it cannot be found, or draws from other random numbers than torch's; nothing that runs its "
            "forward again could be exact"
        )
    if states:
        names = ", ".join(f"{name}.{attribute}" if name else attribute for name, attribute in states)
        notes.append(f"{names}: kept outside SpikingJelly's memories, and put back to the start with every sequence")
    return states


def _whole(model: nn.Module, decision: Decision, x: Tensor, stages: str | None, notes: list[str]) -> str | None:
    """Why the model is one stage, or None where it can be cut; notes tell."""
    whole: str | None = None
    try:
        if decision.way == "stepwise":
            raise ValueError("it runs one time step at a time")
        if decision.fixed:
            raise ValueError("it has a loop over time of its own")
        if decision.states:
            raise ValueError("it keeps states of its own")
        parts, head = _cut(model, decision, stages)
        reason = differs(nn.Sequential(*parts, head), _body(model, decision), x)
        whole = None if reason is None else f"it cannot be cut into stages: {reason}"
    except ValueError as error:
        whole = f"it cannot be cut into stages: {error}"
    if whole is not None:
        if stages:
            notes.append(f"--stages {stages} is without effect")
        notes.append(f"one stage: {whole}")
    else:
        count = f"{len(parts)} stage{'s' if len(parts) != 1 else ''}"
        notes.append(f"{count} and a head, whose output equals the model's to the bit")
    return whole


def adopt(model: nn.Module, decision: Decision, stages: str | None = None) -> Staged:
    """``model`` as stages; it shares modules with the original, which is put into multi-step mode.

    Args:
        model: as its author built it.
        decision: of :func:`decide` on a model of the same factory.
        stages: as given to :func:`decide`.
    """
    if isinstance(model, StagedModel):
        functional.set_step_mode(model, "m")
        return Staged(model, list(decision.notes))
    head: nn.Module
    if decision.whole is not None:
        parts, head = [_body(model, decision)], nn.Identity()
    else:
        parts, head = _cut(model, decision, stages)
    if decision.time_mean:
        head = nn.Sequential(head, ToSequence())
    staged = StagedModel(parts, head, normalisation(model, decision.way, decision.fixed))
    return Staged(staged, list(decision.notes), decision.time_mean)


def copied(model: M) -> M:
    """A deep copy, also of a model that still holds tensors with a graph from a forward of its own."""
    memo = dict[int, Any]()
    for module in model.modules():
        for value in vars(module).values():
            for tensor in _graphed(value):
                memo[id(tensor)] = detached(tensor)
    return copy.deepcopy(model, memo)


def _graphed(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
    elif type(value) in (list, tuple, dict):
        for part in value.values() if type(value) is dict else value:
            yield from _graphed(part)


def _cut(model: nn.Module, decision: Decision, stages: str | None) -> tuple[list[nn.Module], nn.Module]:
    parts, head = stages_of(_through(model, decision.way, decision.fixed, False), stages)
    if decision.way == "static":
        parts[0] = nn.Sequential(Still(decision.steps), parts[0])
    return parts, head


def _body(model: nn.Module, decision: Decision) -> nn.Module:
    """The model as one module that takes sequences."""
    body = _through(model, decision.way, decision.fixed, bool(decision.states))
    if decision.way == "static":
        body = nn.Sequential(Still(decision.steps), body)
    if not decision.single:
        body = Sequences(body)
    return Restarted(body, model, decision.states) if decision.states else body


def normalisation(model: nn.Module, way: Way, fixed: bool = False) -> Normalisation:
    """The model's normalisation mode."""
    if any(isinstance(child, (_BatchNorm, base.MemoryModule)) and _normalises(child) for child in model.modules()):
        return "per_step" if way == "stepwise" or fixed else "over_time"
    standardised = any(isinstance(child, (layer.WSConv2d, layer.WSLinear)) for child in model.modules())
    return "weight_standardised" if standardised else "none"


def _normalises(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) or "Norm" in type(module).__name__


def _through(model: nn.Module, way: Way, fixed: bool, states: bool) -> nn.Module:
    """The model, ready for sequences; for one frame of them where it repeats that.

    Args:
        model: as its author built it.
        way: how it takes its input.
        fixed: it keeps its step modes.
        states: it keeps some of its own.
    """
    if way == "stepwise":
        functional.set_step_mode(model, "s")
        # SpikingJelly leaves the modes inside such a container alone.
        return layer.StepModeContainer(states or _stateful(model), "m", model)
    if fixed:
        return Whole(model)
    functional.set_step_mode(model, "m")
    if way == "converted":
        convert(model)
    return model


def _stateful(model: nn.Module) -> bool:
    return any(isinstance(child, base.MemoryModule) for child in model.modules())
