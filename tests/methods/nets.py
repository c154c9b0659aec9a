"""Small staged models, and one training step of a method on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import Tensor, nn

from harness.contracts import Loss, Method, Normalisation, StagedModel, StepOutput, reset_states

Node = Callable[[], nn.Module]
CLASSES = 3


class PerStepBatchNorm2d(layer.BatchNorm2d):
    """Statistics of each time step: single-step mode in a loop."""

    def forward(self, x: Tensor) -> Tensor:
        if self.step_mode == "s":
            return self.super_forward(x)
        return torch.stack([self.super_forward(step) for step in x])


class AddBlock(nn.Module):
    """A residual block as a user writes it: identity + conv - norm - neuron."""

    def __init__(self, channels: int, node: Node, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv = layer.Conv2d(channels, channels, 3, padding=1, bias=False, step_mode="m")
        self.norm, self.node = norm(channels), node()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.node(self.norm(self.conv(x)))


class Scale(nn.Module):
    """Multiplies by a constant; unknown to the width rules."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def lif(**kwargs: Any) -> Node:
    settings = {"tau": 2.0, "v_threshold": 0.5, "surrogate_function": surrogate.ATan(), "step_mode": "m"} | kwargs
    return lambda: neuron.LIFNode(**settings)


def integrate(**kwargs: Any) -> Node:
    settings = {"surrogate_function": surrogate.ATan(), "step_mode": "m"} | kwargs
    return lambda: neuron.IFNode(**settings)


def plif(**kwargs: Any) -> Node:
    settings = {"init_tau": 2.0, "v_threshold": 0.5, "surrogate_function": surrogate.ATan(), "step_mode": "m"} | kwargs
    return lambda: neuron.ParametricLIFNode(**settings)


def over_time(channels: int) -> nn.Module:
    return layer.BatchNorm2d(channels, step_mode="m")


def per_step(channels: int) -> nn.Module:
    return PerStepBatchNorm2d(channels, step_mode="m")


def no_norm(channels: int) -> nn.Module:
    return nn.Identity()


def conv(inputs: int, outputs: int, node: Node, norm: Callable[[int], nn.Module], *tail: nn.Module) -> nn.Sequential:
    weight = layer.Conv2d(inputs, outputs, 3, padding=1, bias=norm is no_norm, step_mode="m")
    return nn.Sequential(weight, norm(outputs), node(), *tail)


def build(
    node: Node | None = None,
    norm: Callable[[int], nn.Module] = over_time,
    middle: Callable[[int], nn.Module] | None = None,
    *,
    seed: int = 0,
    mode: Normalisation | None = None,
) -> StagedModel:
    """Conv stage, ``middle`` (given the channels), max pooling, conv stage, read-out; input ``[T, N, 2, 8, 8]``."""
    torch.manual_seed(seed)
    node = node or lif()
    middle = middle or (lambda channels: AddBlock(channels, node, norm))
    stages = [conv(2, 4, node, norm), middle(4), layer.MaxPool2d(2, step_mode="m"), conv(4, 4, node, norm)]
    head = nn.Sequential(layer.Flatten(step_mode="m"), layer.Linear(4 * 4 * 4, CLASSES, step_mode="m"))
    modes: dict[Any, Normalisation] = {over_time: "over_time", per_step: "per_step", no_norm: "none"}
    return StagedModel(stages, head, mode or modes[norm])


def batch(T: int = 4, N: int = 3, dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn((T, N, 2, 8, 8), generator=draw, dtype=torch.float64) * 2
    return x.to(dtype), torch.randint(CLASSES, (N,), generator=draw)


def loss(kind: str = "per_step") -> Loss:
    return Loss(kind, nn.CrossEntropyLoss())  # type: ignore[arg-type]


@dataclass
class Step:
    """What one step did."""

    out: StepOutput
    gradients: dict[str, Tensor]
    updates: int
    buffers: dict[str, Tensor]


def run(method: Method, model: StagedModel, x: Tensor, y: Tensor, objective: Loss | None = None, seed: int = 5) -> Step:
    """One step of a prepared model; gradients are taken when ``update`` is called."""
    objective = objective or loss()
    gradients: dict[str, Tensor] = {}
    updates = 0

    def update() -> None:
        nonlocal updates
        updates += 1
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradients[name] = parameter.grad
            parameter.grad = None

    reset_states(model)
    torch.manual_seed(seed)
    out = method.step(model, x, y, objective, update)
    return Step(out, gradients, updates, {name: b.clone() for name, b in model.named_buffers()})


def prepared(method: Method, model: StagedModel, x: Tensor) -> StagedModel:
    assert method.supports(model, loss()) is None
    return method.prepare(model.train(), x, loss())


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Relative L2 distance over all parameters."""
    assert a.keys() == b.keys()
    assert a
    one, two = (torch.cat([g[name].flatten().double() for name in a]) for g in (a, b))
    assert two.norm() > 0
    return float((one - two).norm() / two.norm())
