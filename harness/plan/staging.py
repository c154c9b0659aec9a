"""Finds the stages of a model that nobody cut: after every neuron, around every block that contains one.

Containers are taken apart as far as the data goes in one line: an ``nn.Sequential`` by its children, any other module by
what ``torch.fx`` sees of its forward, with its children as they are. Where more than one value is alive between two
calls, as inside a residual block, there is no cut. What cannot be seen through stays in one piece.

The result is compared with the original on a random input, and is only used if it is equal to the bit.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from spikingjelly.activation_based import base, layer
from torch import Tensor, fx, nn

from harness.contracts import StagedModel
from harness.errors import UsageError
from harness.plan.trying import NEURONS, attempt, first_line

JOINED = (layer.MaxPool1d, layer.MaxPool2d, layer.MaxPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
"""What belongs to the stage before it: it makes a stage's output smaller and keeps spikes binary."""
SHOWN = 20
"""Names that an error lists."""


@dataclass(frozen=True)
class Unit:
    """A part of the line that data goes along: a module, or functions between modules."""

    name: str
    module: nn.Module

    @property
    def spiking(self) -> bool:
        """Whether it contains a neuron."""
        return has_neuron(self.module)


@dataclass
class Staged:
    """A model as stages.

    Args:
        model: shares modules, and so weights, with the original.
        notes: what was done and what was not, for people.
        time_mean: the original gives ``[N, K]``: its logits are a mean over time, one step long.
    """

    model: StagedModel
    notes: list[str] = field(default_factory=list)
    time_mean: bool = False


class Functional(nn.Module, base.StepModule):
    """Functions between modules, traced in multi-step mode; one time step is a sequence of one.

    Args:
        graph: ``[T, N, ...] -> [T, N, ...]``, without modules.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph
        self.step_mode = "m"

    def forward(self, x: Tensor) -> Tensor:
        """The functions' value."""
        return self.graph(x) if self.step_mode == "m" else self.graph(x.unsqueeze(0)).squeeze(0)


def has_neuron(module: nn.Module) -> bool:
    """Whether a SpikingJelly neuron is inside."""
    return any(isinstance(child, NEURONS) for child in module.modules())


def stages_of(model: nn.Module, pattern: str | None = None) -> tuple[list[nn.Module], nn.Module]:
    """Stages and head, in order.

    Args:
        model: in multi-step mode.
        pattern: globs of module names, separated by commas: each such module is one stage, and ends it.

    Raises:
        UsageError: the pattern names no module on the line that data goes along.
        ValueError: no line could be found, with the reason.
    """
    patterns = [word.strip() for word in (pattern or "").split(",") if word.strip()]
    is_stage = _matcher(patterns)
    units = list(_units("", model, is_stage))
    if patterns and not any(is_stage(unit.name) for unit in units):
        raise _no_match(patterns, model)
    ends = (lambda unit: is_stage(unit.name)) if patterns else (lambda unit: unit.spiking)
    groups: list[list[nn.Module]] = [[]]
    for unit, after in zip(units, [*units[1:], None], strict=True):
        groups[-1].append(unit.module)
        joined = not patterns and after is not None and isinstance(after.module, JOINED)
        if (ends(unit) and not joined) or (not patterns and _closes(groups[-1])):
            groups.append([])
    *stages, head = groups
    if not stages:
        raise ValueError("it has no SpikingJelly neuron after which it could be cut")
    return [_one(group) for group in stages], _one(head)


def _closes(group: list[nn.Module]) -> bool:
    """A pooling layer that was kept with the neuron before it ends the stage."""
    return isinstance(group[-1], JOINED) and any(map(has_neuron, group))


def _one(modules: list[nn.Module]) -> nn.Module:
    if not modules:
        return nn.Identity()
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def _matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    return lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _no_match(patterns: list[str], model: nn.Module) -> UsageError:
    names = [name for name, _ in model.named_modules() if name]
    more = f", ... and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return UsageError(
        f"--stages {','.join(patterns)!r}: no module of this name lies on the line that the data goes along. "
        f"Allowed: {', '.join(names[:SHOWN]) or '(none)'}{more}"
    )


def _units(name: str, module: nn.Module, is_stage: Callable[[str], bool]) -> Iterator[Unit]:
    """The line of units that ``module`` is."""
    whole = Unit(name, module)
    if isinstance(module, NEURONS) or (name and is_stage(name)) or not _worth(name, module, is_stage):
        yield whole
    elif type(module) is nn.Sequential:
        for key, child in module.named_children():
            yield from _units(_join(name, key), child, is_stage)
    else:
        try:
            parts = _line(module)
        except Exception as error:  # tracing a user's forward may fail in any way
            if not name:
                raise ValueError(f"torch.fx cannot see through its forward: {first_line(error)}") from error
            yield whole
            return
        # A block of its own with branches is one stage, as its author wrote it.
        if name and any(called is None and has_neuron(part) for called, part in parts):
            yield whole
            return
        for called, part in parts:
            if called is None:
                yield Unit(name, part)
            else:
                yield from _units(_join(name, called), part, is_stage)


def _worth(name: str, module: nn.Module, is_stage: Callable[[str], bool]) -> bool:
    """Whether there is something inside to cut at."""
    inside = (is_stage(_join(name, child)) for child, _ in module.named_modules() if child)
    return has_neuron(module) or any(inside)


def _join(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


class _Tracer(fx.Tracer):
    """Sees one module's forward; what it calls stays as it is."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _line(module: nn.Module) -> list[tuple[str | None, nn.Module]]:
    """The forward of a module as parts of one line: a child by name, or other code without one.

    Raises:
        ValueError: it takes or gives more than one tensor.
    """
    graph = _Tracer().trace(module)
    nodes = [node for node in graph.nodes if node.op != "output"]
    (out,) = (node for node in graph.nodes if node.op == "output")
    inputs = [node for node in nodes if node.op == "placeholder"]
    if not isinstance(out.args[0], fx.Node):
        raise ValueError("it gives more than one value")
    if len(inputs) != 1 and any(node.users for node in inputs[1:]):
        raise ValueError("it takes more than one value")
    parts, held, last = list[tuple[str | None, nn.Module]](), list[fx.Node](), inputs[0]
    for position, node in enumerate(nodes):
        if node.op == "placeholder":
            continue
        held.append(node)
        if node is out.args[0] or _alone(nodes, position):
            parts.append(_part(module, held, last, node))
            held, last = [], node
    return parts


def _alone(nodes: list[fx.Node], position: int) -> bool:
    """Whether after ``position`` only that node's value is used any more."""
    later = set(nodes[position + 1 :])
    return all(
        not any(user in later or user.op == "output" for user in node.users)
        for node in nodes[:position]
    ) and any(user in later or user.op == "output" for user in nodes[position].users)  # fmt: skip


def _part(module: nn.Module, nodes: list[fx.Node], before: fx.Node, end: fx.Node) -> tuple[str | None, nn.Module]:
    if len(nodes) == 1 and end.op == "call_module" and end.args == (before,) and not end.kwargs:
        return str(end.target), module.get_submodule(str(end.target))
    graph = fx.Graph()
    seen: dict[fx.Node, Any] = {before: graph.placeholder("x")}
    for node in nodes:
        seen[node] = graph.node_copy(node, lambda old: seen[old])
    graph.output(seen[end])
    part = fx.GraphModule(module, graph)
    return None, part if any(node.op in ("call_module", "get_attr") for node in nodes) else Functional(part)


def differs(one: nn.Module, other: nn.Module, x: Tensor) -> str | None:
    """None where both give the same bits on ``x``, in training mode and from the same random state; else what differs.

    Buffers and random state are left as they were.
    """
    mine, problem = attempt(one, x)
    if problem is None:
        theirs, problem = attempt(other, x)
    if problem is not None:
        return problem
    if mine.shape != theirs.shape:
        return f"its stages give {tuple(mine.shape)}, itself {tuple(theirs.shape)}"
    if not torch.equal(mine, theirs):
        return f"its stages' output is off by {float((mine - theirs).abs().max()):.2g}"
    return None
