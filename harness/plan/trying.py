"""Runs a model of which nothing is known, to see what it takes: without a trace in it, and without a graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from spikingjelly.activation_based import base, functional, neuron
from torch import Tensor, nn

from harness.contracts import reset_states
from harness.plan.wrapping import Place, detached

NEURONS = (neuron.BaseNode, neuron.SimpleBaseNode, neuron.PSN, neuron.MaskedPSN, neuron.SlidingPSN)
"""SpikingJelly's neuron layers."""
NO_TENSOR = "not a tensor: let its forward give the logits alone"
_TORCHS = ("_parameters", "_buffers", "_modules")
Modes = list[tuple[base.StepModule, str]]


class Steps:
    """How many time steps each neuron layer runs over, while this context is open: calls, or the length of each.

    Args:
        model: whose neurons.
        lead: ``(T, N)`` of a whole sequence.
    """

    def __init__(self, model: nn.Module, lead: tuple[int, int]) -> None:
        self._nodes: list[Any] = [module for module in model.modules() if isinstance(module, NEURONS)]
        self._weights = [m for m in model.modules() if m._parameters and not isinstance(m, NEURONS)]
        self._calls = dict[nn.Module, int]()
        self._lead, self._handles, self._odd = lead, list[Any](), False
        self._seen = dict[nn.Module, int]()

    def __enter__(self) -> Steps:
        self._seen.clear()
        self._calls.clear()
        self._odd = False
        self._handles = [node.register_forward_pre_hook(self._count) for node in self._nodes]
        self._handles += [module.register_forward_pre_hook(self._call) for module in self._weights]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def all(self) -> set[int]:
        """Numbers of steps; empty where no neuron ran, or one took whole sequences for steps."""
        return set() if self._odd else set(self._seen.values())

    @property
    def loops(self) -> int:
        """How often a layer with weights ran, the one that ran most."""
        return max(self._calls.values(), default=0)

    @property
    def silent(self) -> bool:
        """True if the model has no neuron, or none ran."""
        return not self._seen and not self._odd

    def _call(self, module: nn.Module, _: Any) -> None:
        self._calls[module] = self._calls.get(module, 0) + 1

    def _count(self, node: Any, given: tuple[Any, ...]) -> None:
        x = given[0] if given else None
        if isinstance(x, Tensor):
            single = getattr(node, "step_mode", "m") == "s"
            known = self._seen.get(node)
            steps = (known or 0) + 1 if single else x.shape[0]
            whole = single and self._lead[0] > 1 and tuple(x.shape[:2]) == self._lead
            self._odd = self._odd or whole or (not single and known not in (None, steps))
            self._seen[node] = steps


def modes_of(model: nn.Module) -> Modes:
    """Step modes of all modules."""
    found = (module for module in model.modules() if isinstance(module, base.StepModule))
    return [(module, module.step_mode) for module in found if hasattr(module, "step_mode")]


def set_mode(model: nn.Module, mode: str) -> bool:
    """Put a model into a step mode; False where a module has none such, and all are as before."""
    before = modes_of(model)
    try:
        functional.set_step_mode(model, mode)
    except ValueError:
        put_back(before)
        return False
    return True


def put_back(modes: Modes) -> None:
    """Step modes as they were."""
    for module, mode in modes:
        if module.step_mode != mode:
            module.step_mode = mode


def attempt(
    model: nn.Module, x: Tensor, evaluate: bool = False, within: contextlib.AbstractContextManager[Any] | None = None
) -> tuple[Any, str | None]:
    """What a model gives, or None and why it does not run. Buffers, states and random numbers are as before.

    Args:
        model: it.
        x: its input.
        evaluate: in evaluation mode.
        within: opened around the forward.
    """
    try:
        with untouched(model), within or contextlib.nullcontext():
            return run(model.train(not evaluate), x), None
    except Exception as error:  # a user's forward may fail in any way
        return None, first_line(error)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Training mode, attributes and buffers as before, even those that a forward replaced."""
    tables = [(table, dict(table)) for module in model.modules() for table in (vars(module), module._buffers)]
    lists = [(v, list(v)) for _, before in tables for v in before.values() if type(v) is list]
    dicts = [(v, dict(v)) for _, before in tables for k, v in before.items() if type(v) is dict and k not in _TORCHS]
    values = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for table, before in (*tables, *dicts):
            table.clear()
            table.update(before)
        for listed, old in lists:
            listed[:] = old
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)


def run(model: nn.Module, x: Tensor) -> Tensor:
    """Output of a model from its first state on, always with the same random numbers.

    Raises:
        TypeError: it is no tensor.
    """
    reset_states(model)
    try:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            out = model(x)
    finally:
        reset_states(model)
    if not isinstance(out, Tensor):
        raise TypeError(f"its output is a {type(out).__name__}, {NO_TENSOR}")
    return out


def first_line(error: BaseException) -> str:
    """Kind and first line of an error."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def kept_states(model: nn.Module, call: Callable[[], Any], batch: int) -> tuple[tuple[Place, ...], bool]:
    """Attributes in which a model keeps a state from one forward to the next, and whether its output tells so.

    SpikingJelly's memories are reset before every forward; what a module of somebody's own keeps in an attribute, or in
    a buffer that is as large as the batch, is not.

    Args:
        model: it.
        call: a forward in evaluation mode, always with the same input.
        batch: samples of that input.
    """
    first = call()
    before = _attributes(model)
    second = call()
    found = [place for place, value in _attributes(model).items() if _moved(before.get(place), value, batch)]
    return tuple(found), not _same(first, second)


def _attributes(model: nn.Module) -> dict[Place, Any]:
    """What holds tensors, in memory of its own."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, base.MemoryModule):
            continue
        plain = {key: value for key, value in vars(module).items() if key not in _TORCHS and _tensors(value)}
        for key, value in (plain | {k: v for k, v in module._buffers.items() if v is not None}).items():
            found[name, key] = detached(value)
    return found


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if type(value) is dict else value if type(value) in (list, tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _moved(before: Any, after: Any, batch: int) -> bool:
    """Whether it changed from one forward to the next, and belongs to the samples."""
    one, two = _tensors(before), _tensors(after)
    batched = any(batch in tensor.shape for tensor in two)
    return batched and (len(one) != len(two) or not all(map(_same, one, two)))


def _same(one: Any, two: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(two, Tensor):
        return one is two
    return one.shape == two.shape and torch.equal(one, two)
