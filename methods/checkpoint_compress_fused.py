"""Gradient checkpointing with spike compression on fused neurons, as the paper runs it (ICLR 2026, seed 000).

:mod:`methods.checkpoint_compress` on the network of :mod:`methods.bptt_fused`: the paper's rows are ``MELIF + O1`` and so
on, their neurons keep the membranes ``u[t]`` only. What a segment's recompute keeps for its backward is what these keep,
so the peak of a level that a recompute sets is lower; segments, widths and the plan are found in the same way.

Stored: as :mod:`methods.checkpoint_compress`; while a segment runs backward, one tensor per neuron layer.

Needs from the model: as :mod:`methods.checkpoint_compress`, and at least one neuron that can be fused
(:mod:`methods.bptt_fused`).
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from harness.contracts import Loss, Options, StagedModel
from methods.bptt_fused import BPTTFused, BPTTFusedOptions
from methods.checkpoint_compress import CheckpointCompress, CheckpointCompressOptions


class CheckpointCompressFusedOptions(CheckpointCompressOptions, BPTTFusedOptions):
    """Options of :class:`CheckpointCompressFused`: those of both methods."""


class CheckpointCompressFused(CheckpointCompress):
    """Checkpointing with spike compression, segments recomputed with fused neurons."""

    name = "checkpoint-compress-fused"
    summary = "checkpoint-compress on fused neurons, which keep one tensor a layer while a segment is recomputed"
    paper = "gradient checkpointing + spike compression, ICLR 2026"
    gradient = "exact"
    baseline = "bptt-fused"
    options: ClassVar[type[CheckpointCompressFusedOptions]] = CheckpointCompressFusedOptions

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self._fused = BPTTFused(BPTTFusedOptions(save=self.opt.save))

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or which of the needs above is not met."""
        return super().supports(model, loss) or self._fused.supports(model, loss)

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        """Fuse the neurons in place, then as :meth:`CheckpointCompress.prepare`.

        Raises:
            ValueError: as there.
        """
        return super().prepare(self._fused.prepare(model, example, loss), example, loss)

    def finish(self, model: StagedModel) -> nn.Module:
        """The model with SpikingJelly's neurons again."""
        return self._fused.finish(model)

    def plan(self) -> dict[str, Any]:
        """That of :meth:`CheckpointCompress.plan`, and ``neurons``: that of :meth:`BPTTFused.plan`."""
        return {**super().plan(), "neurons": self._fused.plan()}
