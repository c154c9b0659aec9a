"""What a module's forward depends on besides its input and parameters, so that it can run a second time exactly.

The second run sees and leaves the module as if it had not happened:

* SpikingJelly memories (membranes, dropout masks) start from their value at entry;
* running statistics are updated by the first run only; other buffers start from their value at entry;
* random numbers are drawn again from the generators that the first run drew from, and from no others;
* autocast is as it was, but without its cache of cast weights: a weight cast without a graph would lose its gradient,
  and the cache keeps a copy of every weight alive.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _NormBase


class Memories:
    """SpikingJelly's memories of a module (membranes, dropout masks) as they are now."""

    def __init__(self, module: nn.Module) -> None:
        nodes = [m for m in module.modules() if isinstance(m, base.MemoryModule)]
        self._values = [(m._memories, {k: _shallow(v) for k, v in m._memories.items()}) for m in nodes]

    def load(self) -> None:
        """Put them back."""
        for memories, values in self._values:
            memories.update({name: _shallow(value) for name, value in values.items()})


class Buffers:
    """Buffers of a module as they are now, but for running statistics, which one run only updates."""

    def __init__(self, module: nn.Module) -> None:
        self._values = [
            (m._buffers, name, buffer, buffer._version, buffer.clone())
            for m in module.modules()
            if not isinstance(m, _NormBase)
            for name, buffer in m._buffers.items()
            if buffer is not None
        ]

    def settle(self) -> None:
        """After the first run: forget what it did not change."""
        self._values = [b for b in self._values if b[2]._version != b[3] or b[0].get(b[1]) is not b[2]]

    def load(self) -> None:
        """Put copies of them in place."""
        for table, name, _, _, value in self._values:
            table[name] = value.clone()


class Entry:
    """A module's state as it is now, just before its forward.

    Args:
        module: about to run.
        x: its input; its device is the one in use, and a fake one draws no random numbers.
    """

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self._module, self._device = module, x.device
        self._memories = Memories(module)
        self._buffers = Buffers(module)
        # Comparing states finds out exactly who draws: the CPU's takes 5 KB and a few microseconds.
        self._random = {} if isinstance(x, FakeTensor) else _random_states(x.device)
        self._amp = torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)

    def autocast(self) -> torch.autocast:
        """Autocast as it was at entry, without its cache."""
        enabled, dtype = self._amp
        return torch.autocast(self._device.type, dtype=dtype, enabled=enabled, cache_enabled=False)

    def settle(self) -> None:
        """After the first run: put memories back, and forget what the run did not change."""
        self._memories.load()
        self._buffers.settle()
        if self._random:
            now = _random_states(self._device)
            self._random = {key: old for key, old in self._random.items() if not torch.equal(old, now[key])}

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Everything as it was at entry; afterwards as it was before, as if the module had not run."""
        with _traceless(self._module), self.autocast():
            self._memories.load()
            self._buffers.load()
            for module in self._module.modules():
                if isinstance(module, _NormBase) and module.training:
                    module.track_running_stats = False
            before = _random_states(self._device) if self._random else {}
            _set_random_states(self._random)
            try:
                yield
            finally:
                _set_random_states({key: before[key] for key in self._random})


@contextlib.contextmanager
def _traceless(root: nn.Module) -> Iterator[None]:
    """Put every attribute, memory and buffer slot below ``root`` back on exit."""
    tables = [t for m in root.modules() for t in (vars(m), m._buffers, vars(m).get("_memories")) if t is not None]
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, content in zip(tables, before, strict=True):
            table.clear()
            table.update(content)


def _shallow(value: Any) -> Any:
    return value if isinstance(value, Tensor) else copy.copy(value)


def _random_states(device: torch.device) -> dict[torch.device, Tensor]:
    states = {torch.device("cpu"): torch.get_rng_state()}
    if device.type != "cpu":
        states[device] = torch.get_device_module(device).get_rng_state(device)
    return states


def _set_random_states(states: dict[torch.device, Tensor]) -> None:
    for device, state in states.items():
        if device.type == "cpu":
            torch.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state, device)
