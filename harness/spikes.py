"""Spike recorder: what every neuron layer emitted in a forward, packed, for comparing and for firing rates."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from spikingjelly.activation_based.neuron import BaseNode
from torch import Tensor, nn

from harness.module_trace import WRAPPER


class SpikeRecorder:
    """Records the outputs of all neuron layers while active; recomputation inside a backward is left out.

    Args:
        model: its SpikingJelly neurons (``BaseNode``) are watched, under their module names.
        keep: also keep which outputs were non-zero, for :func:`flipped`.
    """

    def __init__(self, model: nn.Module, keep: bool = True) -> None:
        self.nodes = {name.replace(WRAPPER, ""): m for name, m in model.named_modules() if isinstance(m, BaseNode)}
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.fired: dict[str, list[Tensor]] = defaultdict(list)
        self._keep = keep
        self._handles: list[Any] = []

    def __enter__(self) -> SpikeRecorder:
        """Install the hooks."""
        for name, node in self.nodes.items():
            self._handles.append(node.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *_: Any) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def rates(self) -> dict[str, float]:
        """Mean output per neuron and step, by layer: the firing rate where spikes are 0 or 1."""
        return {name: self.sums[name] / self.counts[name] for name in self.nodes if self.counts[name]}

    def _hook(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            if torch._C._current_graph_task_id() != -1:
                return
            if isinstance(out, (list, tuple)):  # some of SpikingJelly's nodes emit (spikes, trace)
                out = out[0]
            self.sums[name] += float(out.detach().float().sum())
            self.counts[name] += out.numel()
            if self._keep:
                self.fired[name].append((out.detach() != 0).flatten())

        return hook


def flipped(one: SpikeRecorder, other: SpikeRecorder) -> float | None:
    """Fraction of spikes that differ, over the layers that both have; None where no layer can be compared."""
    different = total = 0
    for name in one.fired.keys() & other.fired.keys():
        a, b = torch.cat(one.fired[name]), torch.cat(other.fired[name])
        if a.shape == b.shape:
            different += int((a != b).sum())
            total += a.numel()
    return different / total if total else None
