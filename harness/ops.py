"""Arithmetic of a step: FLOPs and synaptic operations by SpikingJelly's op_counter, firing rates by layer.

``torch.utils.flop_counter`` counts elementwise work as zero, which is where spiking neurons spend theirs.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from spikingjelly.activation_based.op_counter import DispatchCounterMode, FlopCounter, SynOpCounter
from torch import nn

from harness.build import Bench
from harness.contracts import reset_states
from harness.record import LayerActivity, Ops
from harness.spikes import SpikeRecorder


class _OneScope:
    """Stands in for op_counter's module tracker, which loses count in the backward of a training step."""

    parents: ClassVar[set[str]] = {"Global"}
    active_modules: ClassVar[set[nn.Module]] = set()

    def __enter__(self) -> _OneScope:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def measure(bench: Bench) -> Ops:
    """The ops block: a forward of the finished model, and a whole training step of the method."""
    trainer, (x, y) = bench.trainer(), bench.batch
    step = FlopCounter()
    reset_states(trainer.model)
    # Nothing may be skipped silently: what has no rule is listed in the record.
    step_mode = DispatchCounterMode([step])
    step_mode.module_tracker = _OneScope()
    unseen = trainer.method.ledger
    if unseen is None:
        with step_mode:
            trainer.step(x, y)
    forward, synops = FlopCounter(), SynOpCounter()
    plain = bench.plain()
    reset_states(plain)
    with torch.no_grad(), SpikeRecorder(plain, keep=False) as spikes, DispatchCounterMode([forward, synops]):
        plain(x)
    return Ops(
        forward_flops=forward.get_total(),
        step_flops=step.get_total() if unseen is None else None,
        synops=synops.get_total(),
        layers=[LayerActivity(name=name, firing_rate=rate) for name, rate in spikes.rates().items()],
        uncounted=step_mode.get_unsupported(step) if unseen is None else {},
        reasons={} if unseen is None else {"step_flops": unseen},
    )
