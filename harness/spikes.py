"""Spike recorder: what every neuron layer emitted in a forward, for comparing and for firing rates."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based.neuron import BaseNode
from torch import Tensor, nn

from harness.contracts import listen
from harness.module_trace import WRAPPER


@dataclass
class _Part:
    """Some of a layer's outputs.

    Args:
        start: number of the first sample in a chunk ``[T, n, ...]`` of the batch; None for a module's output.
        total: sum of the outputs.
        count: how many.
        fired: which were not zero; None where that is not kept.
    """

    start: int | None
    total: float
    count: int
    fired: Tensor | None


class SpikeRecorder:
    """Records the outputs of all neuron layers while active; recomputation inside a backward is left out.

    A layer's outputs are those of its module, or what a method that does not call the module hands to
    :func:`harness.contracts.listener`.

    Args:
        model: its SpikingJelly neurons (``BaseNode``) are watched, under their module names.
        keep: also keep which outputs were non-zero, for :func:`flipped`.
    """

    def __init__(self, model: nn.Module, keep: bool = True) -> None:
        self.nodes = {name.replace(WRAPPER, ""): m for name, m in model.named_modules() if isinstance(m, BaseNode)}
        self._parts: dict[str, list[_Part]] = defaultdict(list)
        self._keep = keep
        self._handles: list[Any] = []

    def __enter__(self) -> SpikeRecorder:
        """Install the hooks."""
        for name, node in self.nodes.items():
            self._handles.append(node.register_forward_hook(self._hook(name)))
            listen(node, self._listener(name))
        return self

    def __exit__(self, *_: Any) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        for node in self.nodes.values():
            listen(node, None)
        self._handles.clear()

    def rates(self) -> dict[str, float]:
        """Mean output per neuron and step, by layer: the firing rate where spikes are 0 or 1."""
        counts = {name: sum(part.count for part in self._parts[name]) for name in self.nodes}
        return {n: sum(part.total for part in self._parts[n]) / count for n, count in counts.items() if count}

    def fired(self) -> dict[str, Tensor]:
        """Which outputs were not zero, by layer: flat, in the order of ``[T, N, ...]``."""
        found = {}
        for name, parts in self._parts.items():
            tensors = [part.fired for part in parts if part.fired is not None]
            if not tensors:
                continue
            if parts[0].start is None:
                found[name] = torch.cat([fired.flatten() for fired in tensors])
            else:
                found[name] = torch.cat(tensors, 1).flatten()
        return found

    def _hook(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            if torch._C._current_graph_task_id() != -1:
                return
            if isinstance(out, (list, tuple)):  # some of SpikingJelly's nodes emit (spikes, trace)
                out = out[0]
            self._parts[name].append(self._part(out.detach(), None))

        return hook

    def _listener(self, name: str) -> Any:
        def heard(spikes: Tensor, start: int) -> None:
            # A forward that a method does again, from the first sample, replaces what it emitted before.
            before = [part for part in self._parts[name] if part.start is not None and part.start < start]
            self._parts[name] = [*before, self._part(spikes.detach(), start)]

        return heard

    def _part(self, out: Tensor, start: int | None) -> _Part:
        fired = out != 0 if self._keep else None
        return _Part(start, float(out.float().sum()), out.numel(), fired)


def flipped(one: SpikeRecorder, other: SpikeRecorder) -> float | None:
    """Fraction of spikes that differ, over the layers that both have; None where no layer can be compared."""
    ours, theirs = one.fired(), other.fired()
    different = total = 0
    for name in ours.keys() & theirs.keys():
        if ours[name].shape == theirs[name].shape:
            different += int((ours[name] != theirs[name]).sum())
            total += ours[name].numel()
    return different / total if total else None
