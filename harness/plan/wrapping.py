"""Modules around a model that cannot be taken as it is: whole sequences in, whole sequences out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from spikingjelly.activation_based import base, layer
from torch import Tensor, fx, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor

NOTHING = object()
"""Stands for an attribute that is not there."""
Place = tuple[str, str]
"""A module of a model and one of its attributes, by name."""


class ToSequence(nn.Module):
    """``[N, K]`` as a sequence of one step, ``[1, N, K]``."""

    def forward(self, x: Tensor) -> Tensor:
        """One more dimension."""
        return x.unsqueeze(0)


class Whole(layer.StepModeContainer):
    """A model with a loop over time of its own: it takes ``[T, N, ...]`` and keeps its own step modes.

    Args:
        model: it; SpikingJelly leaves the modes inside such a container alone.
    """

    def __init__(self, model: nn.Module) -> None:
        nn.Sequential.__init__(self, model)
        self.stateful, self.step_mode = True, "m"

    def supported_step_mode(self) -> tuple[str]:
        """It has no single-step mode."""
        return ("m",)

    def forward(self, x: Tensor) -> Tensor:
        """The model's value; its loop over time is nobody else's to take apart."""
        _not_traced(x)
        return self[0](x)


class Sequences(nn.Sequential, base.MultiStepModule):
    """A model in multi-step mode whose forward takes nothing but whole sequences.

    Args:
        model: it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.step_mode = "m"


class Still(nn.Module, base.MultiStepModule):
    """In front of a model that takes one frame ``[N, ...]`` and repeats it: the first of ``[T, N, ...]``.

    Args:
        steps: how often it does.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.step_mode = steps, "m"

    def forward(self, x: Tensor) -> Tensor:
        """The frame.

        Raises:
            ValueError: another number of steps.
        """
        _not_traced(x)
        if x.shape[0] != self.steps:
            raise ValueError(f"the model repeats its input over {self.steps} steps itself, so T is {self.steps}")
        return x[0]


class Restarted(Whole):
    """A model that keeps states in plain attributes, which start anew with every sequence.

    Args:
        model: takes whole sequences.
        owner: whose attributes they are: ``model``, or a part of it.
        places: the attributes.
    """

    def __init__(self, model: nn.Module, owner: nn.Module, places: Sequence[Place]) -> None:
        super().__init__(model)
        self._starts = list[tuple[nn.Module, str, Any]]()
        for module, attribute in ((owner.get_submodule(name), attribute) for name, attribute in places):
            reset: Any = getattr(module, "reset", None)
            if callable(reset):
                reset()
            self._starts.append((module, attribute, detached(_table(module, attribute).get(attribute, NOTHING))))

    def forward(self, x: Tensor) -> Tensor:
        """The model's value; afterwards its states are as before."""
        self._restart()
        try:
            return super().forward(x)
        finally:
            self._restart()

    def _restart(self) -> None:
        for module, attribute, value in self._starts:
            table = _table(module, attribute)
            if value is NOTHING:
                table.pop(attribute, None)
            else:
                table[attribute] = detached(value)


def detached(value: Any) -> Any:
    """A value without a graph, in memory of its own; lists and the like with their tensors."""
    if isinstance(value, Tensor):
        mode = detect_fake_mode()
        value = value if mode is None or isinstance(value, FakeTensor) else mode.from_tensor(value)
        return value.detach().clone()
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(map(detached, value))
    if type(value) is dict:
        return {key: detached(one) for key, one in value.items()}
    return value if value is NOTHING else copy.copy(value)


def _table(module: nn.Module, attribute: str) -> dict[str, Any]:
    return module._buffers if attribute in module._buffers else vars(module)


def _not_traced(x: object) -> None:
    """What is in here cannot be taken apart by ``torch.fx``: it would lose what is done around it."""
    if isinstance(x, fx.Proxy):
        raise TypeError("this module is one piece")
