"""From any ``nn.Module`` to a :class:`StagedModel` in multi-step mode: SpikingJelly's networks, and plain torch ones.

What a network takes is found by running it: whole sequences ``[T, N, ...]`` in SpikingJelly's multi-step mode, if need be
after its plain torch layers became SpikingJelly's (same weights, same arithmetic, applied to all steps at once); or else
one step ``[N, ...]`` after the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from spikingjelly.activation_based import base, functional, layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.contracts import Normalisation, StagedModel, reset_states
from harness.errors import UsageError
from harness.plan.staging import Staged, differs, stages_of

SAMPLES = 2
"""Samples of the random input that a model is tried on."""
CLOSE = 1e-4
"""Relative difference up to which outputs of both step modes are the same: sums are taken in another order (float32)."""

Way = Literal["sequence", "converted", "stepwise"]
"""How a model takes its input: as it is; with its plain layers made multi-step; or step by step."""


@dataclass(frozen=True)
class Decision:
    """What was found out about a model, so that the next one from the same factory needs no trial.

    Args:
        way: how it takes its input.
        time_mean: it gives ``[N, K]``.
        classes: ``K``.
        whole: why it is one stage; None where it has stages of its own.
        notes: what to tell.
    """

    way: Way
    time_mean: bool
    classes: int
    whole: str | None
    notes: tuple[str, ...]


class ToSequence(nn.Module):
    """``[N, K]`` as a sequence of one step, ``[1, N, K]``."""

    def forward(self, x: Tensor) -> Tensor:
        """One more dimension."""
        return x.unsqueeze(0)


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
    x = torch.rand(steps, SAMPLES, *sample, generator=torch.Generator().manual_seed(0))
    x = x.to(next(iter(model.parameters()), x).device)
    if isinstance(model, StagedModel):
        out = _run(model, x)
        return Decision("sequence", False, out.shape[-1], None, ("a StagedModel: its own stages",))
    way, out, notes = _way(model, x)
    time_mean = out.dim() == 2
    if time_mean:
        notes.append("its output has no time: loss time_mean, and methods that need a loss at every step are left out")
    body = _through(model, way)
    whole: str | None = None
    try:
        if way == "stepwise":
            raise ValueError("it runs one time step at a time")
        parts, head = stages_of(body, stages)
        reason = differs(nn.Sequential(*parts, head), body, x)
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
    return Decision(way, time_mean, out.shape[-1], whole, tuple(notes))


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
    body = _through(model, decision.way)
    parts, head = ([body], nn.Identity()) if decision.whole is not None else stages_of(body, stages)
    if decision.time_mean:
        head = nn.Sequential(head, ToSequence())
    staged = StagedModel(parts, head, normalisation(model, decision.way))
    return Staged(staged, list(decision.notes), decision.time_mean)


def normalisation(model: nn.Module, way: Way) -> Normalisation:
    """The model's normalisation mode."""
    if any(isinstance(child, (_BatchNorm, base.MemoryModule)) and _normalises(child) for child in model.modules()):
        return "per_step" if way == "stepwise" else "over_time"
    standardised = any(isinstance(child, (layer.WSConv2d, layer.WSLinear)) for child in model.modules())
    return "weight_standardised" if standardised else "none"


def _normalises(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) or "Norm" in type(module).__name__


def _way(model: nn.Module, x: Tensor) -> tuple[Way, Tensor, list[str]]:
    """How the model runs; it is left ready for that."""
    nodes = [child for child in model.modules() if isinstance(child, base.MemoryModule)]
    single = any(node.step_mode == "s" for node in nodes)
    expected = None
    if single:
        expected = _try(_Stepwise(model), x, evaluate=True)[0]
        functional.set_step_mode(model, "m")
    found, problem = _sequence(model, x, expected)
    if found is not None:
        notes = ["put from single-step into multi-step mode: batch statistics are over T x N"] if single else []
        return "sequence", found, notes
    with _converted(model) as plain:
        if plain.names and nodes:
            found, _ = _sequence(model, x, expected)
            if found is not None:
                plain.keep = True
                return "converted", found, [f"{len(plain.names)} plain torch layers were made multi-step"]
    functional.set_step_mode(model, "s")
    found, step_problem = _try(_Stepwise(model), x)
    if found is not None and found.dim() == 3:
        return "stepwise", found, ["its input is given one time step at a time"]
    shape = tuple(x.shape)
    raise UsageError(
        f"the model does not run: on a sequence {shape}: {problem}; on one step {shape[1:]}: "
        f"{step_problem or _misshapen(found)}"
    )


def _sequence(model: nn.Module, x: Tensor, expected: Tensor | None) -> tuple[Tensor | None, str | None]:
    """Logits of the whole sequence, where they are what the model gives step by step."""
    out, problem = _try(model, x)
    if out is None:
        return None, problem
    if out.shape[:-1] not in (x.shape[:2], x.shape[1:2]) or (out.dim() == 2 and expected is not None):
        return None, _misshapen(out)
    if expected is not None:
        there, problem = _try(model, x, evaluate=True)
        if there is None or not torch.allclose(there, expected, rtol=CLOSE, atol=CLOSE * float(expected.abs().max())):
            return None, problem or "its output differs from that of single-step mode"
    return out, None


def _misshapen(out: Tensor | None) -> str:
    return "no output" if out is None else f"its output is {tuple(out.shape)}; expected are [T, N, K] or [N, K]"


def _try(model: nn.Module, x: Tensor, evaluate: bool = False) -> tuple[Tensor | None, str | None]:
    training, kept = model.training, [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        return _run(model.train(not evaluate), x), None
    except Exception as error:  # a user's forward may fail in any way
        lines = str(error).splitlines()
        return None, f"{type(error).__name__}: {lines[0] if lines else ''}"
    finally:
        model.train(training)
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


def _run(model: nn.Module, x: Tensor) -> Tensor:
    reset_states(model)
    try:
        with torch.random.fork_rng(), torch.no_grad():
            out = model(x)
    finally:
        reset_states(model)
    if not isinstance(out, Tensor):
        raise TypeError(f"its output is a {type(out).__name__}, not a tensor")
    return out


class _Stepwise(nn.Module):
    """A model in single-step mode over a sequence; for a trial only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.model(step) for step in x])


def _through(model: nn.Module, way: Way) -> nn.Module:
    """The model, ready for sequences."""
    if way == "stepwise":
        functional.set_step_mode(model, "s")
        # SpikingJelly leaves the modes inside such a container alone.
        return layer.StepModeContainer(_stateful(model), "m", model)
    functional.set_step_mode(model, "m")
    if way == "converted":
        _convert(model)
    return model


def _stateful(model: nn.Module) -> bool:
    return any(isinstance(child, base.MemoryModule) for child in model.modules())


@dataclass
class _Plain:
    names: list[str]
    keep: bool = False


@contextlib.contextmanager
def _converted(model: nn.Module) -> Iterator[_Plain]:
    """The model with its plain layers made multi-step; put back unless the block says to keep them."""
    before = _convert(model)
    plain = _Plain(list(before))
    try:
        yield plain
    finally:
        if not plain.keep:
            for name, kind in before.items():
                module = model.get_submodule(name)
                vars(module).pop("_step_mode", None)
                module.__class__ = kind


def _convert(model: nn.Module) -> dict[str, type[nn.Module]]:
    """Give every plain torch layer the class of SpikingJelly's layer of that name; returns the old classes by name."""
    before = {}
    for name, module in model.named_modules():
        kind: Any = getattr(layer, type(module).__name__, None)
        if name and isinstance(kind, type) and issubclass(kind, base.StepModule) and type(module) in kind.__bases__:
            before[name] = type(module)
            module.__class__ = kind
            module.step_mode = "m"
    return before
