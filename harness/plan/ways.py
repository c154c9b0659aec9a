"""Ways in which a model may take its input: tried one after the other, on a random sequence.

Whether a way is right, its neurons tell: each has to run over ``T`` steps, whoever writes the loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from spikingjelly.activation_based import base, layer
from torch import Tensor, nn

from harness.errors import UsageError
from harness.plan.trying import NEURONS, NO_TENSOR, Steps, attempt, modes_of, put_back, set_mode

CLOSE = 1e-4
"""Relative difference up to which outputs of both step modes are the same: sums are taken in another order (float32)."""
Way = Literal["sequence", "converted", "stepwise", "static"]
"""How a model takes its input: as it is; with its plain layers made multi-step; step by step; one frame, repeated."""


@dataclass
class Found:
    """A way that works, and the output."""

    way: Way
    out: Tensor
    notes: list[str]
    fixed: bool = False


class Trial:
    """Tries the ways in which a model may take its input, and leaves it ready for the first that works.

    Args:
        model: as its author built it.
        x: ``[T, N, ...]``.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self._model, self._x, self._T = model, x, len(x)
        self._own = modes_of(model)
        self._watch = Steps(model, (x.shape[0], x.shape[1]))
        self._spiking = any(isinstance(child, NEURONS) for child in model.modules())
        self._single = self._modes_move()
        self._problem, self._told = "", False
        """What to tell, and whether it says enough."""

    def found(self) -> Found:
        """How it takes its input.

        Raises:
            UsageError: in no way.
        """
        still = self._static()
        if still is not None:
            return still
        ways = [self._as_it_is, self._multi_step, self._converted, self._stepwise]
        if self._T == 1:  # a single step is none of a loop's own: the modes' comparison tells more
            ways = [*ways[1:3], ways[0], ways[3]]
        for way in ways:
            put_back(self._own)
            result = way()
            if result is not None:
                return result
        raise UsageError(f"the model does not run: {self._problem}")

    def _modes_move(self) -> bool:
        """Whether multi-step mode would change anything."""
        moved = not set_mode(self._model, "m") or modes_of(self._model) != self._own
        put_back(self._own)
        return moved

    def _static(self) -> Found | None:
        """One frame, which the model repeats."""
        out, _ = attempt(self._model, self._x[0], within=self._watch)
        seen = self._watch.all
        if out is None or len(seen) != 1 or out.shape[:-1] not in ((*seen, self._x.shape[1]), self._x.shape[1:2]):
            return None
        (steps,) = seen
        fixed = self._single
        if fixed and self._watch.loops < steps:
            return None  # a neuron in several places
        if steps != self._T:
            if steps == self._x.shape[1] or steps == 1 or attempt(self._model, self._x)[0] is not None:
                return None
            raise UsageError(
                f"the model repeats one frame over {steps} time steps itself, so T is {steps}, not {self._T}: give that"
            )
        if steps == 1 and fixed:
            return None
        return Found("static", out, [f"it repeats its input over T={steps} itself: the first frame is given"], fixed)

    def _as_it_is(self) -> Found | None:
        """Whole sequences in the step modes that it has."""
        moved = self._single
        out, problem = attempt(self._model, self._x, within=self._watch)
        problem = problem or self._untimely(strict=moved) or self._misshapen(out)
        if problem is not None:
            self._told = self._told or NO_TENSOR in problem
            self._problem = f"on a sequence {tuple(self._x.shape)}: {problem}"
            return None
        fixed = moved and (self._spiking or not self._same_in_multi_step())
        return Found("sequence", out, ["it has a loop over time of its own, and keeps its step modes"] * fixed, fixed)

    def _same_in_multi_step(self) -> bool:
        one = attempt(self._model, self._x, evaluate=True)[0]
        two = attempt(self._model, self._x, evaluate=True)[0] if set_mode(self._model, "m") else None
        put_back(self._own)
        return two is not None and _close(two, one)

    def _multi_step(self) -> Found | None:
        """Whole sequences after a model in single-step mode was put into multi-step mode."""
        if not self._single:
            return None
        expected = attempt(Stepwise(self._model), self._x, evaluate=True)[0]
        if not set_mode(self._model, "m"):
            return None
        out, problem = self._sequence(expected)
        if out is None:
            self._problem = f"on a sequence {tuple(self._x.shape)}: {problem}"
            return None
        return Found("sequence", out, ["put from single-step into multi-step mode: batch statistics are over T x N"])

    def _converted(self) -> Found | None:
        """Whole sequences after plain layers became multi-step ones."""
        if not self._spiking:
            return None
        expected = attempt(Stepwise(self._model), self._x, evaluate=True)[0] if self._single else None
        if not set_mode(self._model, "m"):
            return None
        with _converted(self._model) as plain:
            out = self._sequence(expected)[0] if plain.names else None
            if out is None:
                return None
            plain.keep = True
        return Found("converted", out, [f"{len(plain.names)} plain torch layers were made multi-step"])

    def _stepwise(self) -> Found | None:
        """One step after the other."""
        if not set_mode(self._model, "s"):
            return None
        out, problem = attempt(Stepwise(self._model), self._x, within=self._watch)
        if out is not None and out.dim() == 3 and self._untimely(strict=True) is None:
            return Found("stepwise", out, ["its input is given one time step at a time"])
        if not self._told:
            problem = (
                problem or self._untimely(strict=True) or f"its output is {tuple(out[0].shape)}; expected is [N, K]"
            )
            self._problem += f"; on one step {tuple(self._x.shape[1:])}: {problem}"
        return None

    def _sequence(self, expected: Tensor | None) -> tuple[Tensor | None, str | None]:
        """Logits of the whole sequence, where they are what the model gives step by step."""
        out, problem = attempt(self._model, self._x, within=self._watch)
        problem = problem or self._misshapen(out, timeless=expected is None) or self._untimely(strict=False)
        if problem is None and expected is not None:
            there, problem = attempt(self._model, self._x, evaluate=True)
            if problem is None and not _close(there, expected):
                problem = "its output differs from that of single-step mode"
        return (out, None) if problem is None else (None, problem)

    def _untimely(self, strict: bool) -> str | None:
        """What is wrong with the steps that neurons ran over in the last attempt.

        Args:
            strict: all of them have to run over ``T`` steps, once or several times; otherwise some.
        """
        if self._watch.silent:
            return None
        seen = self._watch.all
        right = [steps % self._T == 0 and 0 < steps != self._x.shape[1] for steps in seen]
        if right and (all(right) if strict else any(right)):
            return None
        if not seen:
            return "its neurons take a whole sequence for one step"
        problem = f"its neurons run over {' or '.join(map(str, sorted(seen)))} steps, not over T={self._T}"
        if seen != {self._x.shape[1]}:
            return problem
        self._told = True
        return f"{problem}: it takes [N, T, ...]; let its forward take [T, N, ...], or put x.transpose(0, 1) before it"

    def _misshapen(self, out: Tensor, timeless: bool = True) -> str | None:
        lead = out.shape[:-1]
        if lead == self._x.shape[:2] or (timeless and lead == self._x.shape[1:2]):
            return None
        self._told = self._told or not self._single
        many = "; of a dense output give a mean over positions" if out.dim() > 3 else ""
        return f"its output is {tuple(out.shape)}; expected are [T, N, K] or [N, K]{many}"


def _close(one: Tensor, other: Tensor) -> bool:
    near = CLOSE * float(other.abs().max())
    return one.shape == other.shape and torch.allclose(one, other, rtol=CLOSE, atol=near)


class Stepwise(nn.Module):
    """A model in single-step mode over a sequence; for a trial only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """``[T, ...]``."""
        return torch.stack([self.model(step) for step in x])


@dataclass
class _Plain:
    names: list[str]
    keep: bool = False


@contextlib.contextmanager
def _converted(model: nn.Module) -> Iterator[_Plain]:
    """The model with its plain layers made multi-step; put back unless the block says to keep them."""
    before = convert(model)
    plain = _Plain(list(before))
    try:
        yield plain
    finally:
        if not plain.keep:
            for name, kind in before.items():
                module = model.get_submodule(name)
                vars(module).pop("_step_mode", None)
                module.__class__ = kind


def convert(model: nn.Module) -> dict[str, type[nn.Module]]:
    """Give every plain torch layer the class of SpikingJelly's layer of that name; returns the old classes by name."""
    before = {}
    for name, module in model.named_modules():
        kind: Any = getattr(layer, type(module).__name__, None)
        if name and isinstance(kind, type) and issubclass(kind, base.StepModule) and type(module) in kind.__bases__:
            before[name] = type(module)
            module.__class__ = kind
            module.step_mode = "m"
    return before
