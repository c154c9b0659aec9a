"""Which module is running: forward from hooks, backward from autograd's sequence numbers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules import module as hooks

Origin = Literal["forward", "backward", "recompute", "other"]

_SENTINEL = 1 << 62
"""AccumulateGrad nodes carry UINT64_MAX as sequence number, so that they run first."""

WRAPPER = "_checkpoint_wrapped_module."
"""torch's checkpoint wrapper adds this to the names of what it wraps."""


class ModuleTrace:
    """Follows the forward of a model's modules and finds the module that a backward node belongs to.

    An autograd node belongs to the module with the narrowest interval of sequence numbers around the node's own.

    Args:
        model: its modules are named; None attributes everything to ``""``.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._names: dict[nn.Module, str] = {}
        if model is not None:
            self._names = {m: name.replace(WRAPPER, "") for name, m in model.named_modules()}
        self._stack: list[tuple[nn.Module, int]] = []
        self._intervals: list[tuple[int, int, str]] = []
        self._cache: dict[int, str] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> ModuleTrace:
        """Install global hooks."""
        if self._names:
            self._handles = [
                hooks.register_module_forward_pre_hook(self._pre),
                hooks.register_module_forward_hook(self._post, always_call=True),
            ]
        return self

    def __exit__(self, *_: Any) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stack.clear()

    def where(self) -> tuple[str, Origin]:
        """Name of the running module and what it is doing."""
        backward = torch._C._current_graph_task_id() != -1
        if self._stack:
            return self._names[self._stack[-1][0]], "recompute" if backward else "forward"
        if not backward:
            return "", "forward"
        node = torch._C._current_autograd_node()
        number = node._sequence_nr() if node is not None else _SENTINEL
        return ("", "backward") if number >= _SENTINEL else (self._owner(number), "backward")

    def _owner(self, number: int) -> str:
        if number not in self._cache:
            around = [(end - start, name) for start, end, name in self._intervals if start <= number < end]
            self._cache[number] = min(around)[1] if around else ""
        return self._cache[number]

    def _pre(self, module: nn.Module, _args: Any) -> None:
        if module in self._names:
            self._stack.append((module, _sequence()))

    def _post(self, module: nn.Module, _args: Any, _out: Any) -> None:
        if not self._stack or module not in self._names:
            return
        # An exception (torch's early stop of a recompute) may have left inner modules on the stack.
        while self._stack:
            top, start = self._stack.pop()
            if top is module:
                self._intervals.append((start, _sequence(), self._names[module]))
                self._cache.clear()
                return


def _sequence() -> int:
    return torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
