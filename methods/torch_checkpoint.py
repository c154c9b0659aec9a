"""``torch.utils.checkpoint`` on every stage: what a practitioner writes first, made to keep its promise.

::

    for stage in model.stages:
        x = checkpoint(stage, x, use_reentrant=False)

As it stands, this line is wrong for a spiking network, without a word: the recompute starts from the membranes that the
forward left behind, so its gradient is not BPTT's (13 % off on a small net), and every running statistic is updated
twice a step. Switching ``track_running_stats`` off for the recompute does not help: torch then finds that fewer tensors
are saved than in the forward, and raises. So the recompute runs, through ``context_fn``, from the memories at entry and
on copies of the buffers. With that the gradient is BPTT's, and statistics are updated once.

Stored: the input of each stage, as it is, and, while a stage runs backward, what autograd saves for that stage. Random
states of the CPU, and of the GPU in use, for every stage.

Needs from the model: stages that describe its forward, and no state shared between stages. The head is not a segment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.contracts import Loss, StagedModel, StepOutput
from methods._entry import Buffers, Memories
from methods.checkpoint import Checkpoint


class TorchCheckpoint(Checkpoint):
    """``torch.utils.checkpoint`` around every stage."""

    name = "torch-checkpoint"
    summary = "torch.utils.checkpoint (non-reentrant) around every stage, recomputed from the state at entry"
    paper = "-"

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """See :meth:`Method.step`."""
        hidden = x
        for stage in model.stages:
            contexts = partial(_contexts, stage, Memories(stage))
            hidden = checkpoint(stage, hidden, use_reentrant=False, context_fn=contexts)
        logits = model.head(hidden)
        value = loss(logits, y)
        loss.backward(value)
        update()
        return StepOutput(value.detach(), logits.detach().mean(0))


Contexts = tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]


def _contexts(stage: nn.Module, entry: Memories) -> Contexts:
    """What torch runs the forward and the recompute in."""
    buffers = Buffers(stage)
    return _settling(buffers), _unnoticed(stage, entry, buffers)


@contextlib.contextmanager
def _settling(buffers: Buffers) -> Iterator[None]:
    """The forward: what it changes is put back for the recompute (the vectors of a spectral norm)."""
    yield
    buffers.settle()


@contextlib.contextmanager
def _unnoticed(stage: nn.Module, entry: Memories, before: Buffers) -> Iterator[None]:
    """From the memories and buffers at entry, on copies of running statistics; torch may end a recompute early."""
    left, tables = Memories(stage), [module._buffers for module in stage.modules()]
    buffers = [dict(table) for table in tables]
    entry.load()
    for table in tables:
        table.update({name: None if buffer is None else buffer.clone() for name, buffer in table.items()})
    before.load()
    try:
        yield
    finally:
        left.load()
        for table, content in zip(tables, buffers, strict=True):
            table.update(content)
