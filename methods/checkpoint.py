"""Layer-wise gradient checkpointing (Chen et al., 2016), without compression.

Every stage is a segment. For stages ``h_l = f_l(h_{l-1})`` the backward recomputes ``f_l`` from ``h_{l-1}`` and applies
the chain rule to it at once: ``g_{l-1} = (df_l / dh_{l-1})^T g_l``. The same operators run on the same numbers as in
BPTT, so the gradient is BPTT's.

Stored: the input of each stage, as it is (the network's own input is not copied), and, while a stage runs backward,
what autograd saves for that one stage. Memory is ``sum_l h_l + max_l internals_l`` instead of their sum; about one more
forward of time.

Needs from the model: stages that describe its forward, and no state shared between stages. The head is not a segment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from harness.contracts import Loss, Method, StagedModel, StepOutput
from methods._segment import segmented_forward, unsegmentable
from methods.packing import RAW, Packed, pack


class Checkpoint(Method):
    """Keep each stage's input, recompute the rest."""

    name = "checkpoint"
    summary = "layer-wise gradient checkpointing: each stage keeps its input only"
    paper = "Chen, Xu, Zhang, Guestrin: Training deep nets with sublinear memory cost, arXiv:1604.06174"
    gradient = "exact"

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._segments = 0

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or why the model's stages cannot be recomputed one by one."""
        return unsegmentable(model)

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        """Nothing is rewritten: state_dict keys stay as they are."""
        self._segments = len(model.stages)
        return model

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """See :meth:`Method.step`."""
        logits = segmented_forward(model, x, _raw)
        value = loss(logits, y)
        loss.backward(value)
        update()
        return StepOutput(value.detach(), logits.detach().mean(0))

    def plan(self) -> dict[str, Any]:
        """``segments``: how many stages are checkpointed."""
        return {"segments": self._segments}


def _raw(index: int, x: Tensor) -> Packed:
    return pack(x, RAW)
