"""What methods share that train every layer with a read-out of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from spikingjelly.activation_based import functional
from torch import Tensor, nn

from harness.contracts import Loss, Method, Options, StagedModel
from methods._local import Part, assemble, dismantle, layers_of, read_out, unsupported
from methods._measure import shapes


class LayerWise(Method):
    """Every layer is a part of its own; the last one ends in the model's head."""

    gradient = "biased"
    online: ClassVar[bool] = True
    """Whether time steps are taken one by one."""

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self._parts: list[Part] = []

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or which of the needs above is not met."""
        return unsupported(model, loss, online=self.online)

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        """Attach a read-out to every layer but the last."""
        mode = "s" if self.online else "m"
        functional.set_step_mode(model, mode)
        *_, classes = found = shapes(model, example, mode)
        count = len(layers_of(model))
        tails = [self.tail(model, sample, classes[0], mode) for sample in found[1:count]]
        self._parts = assemble(model, [range(n, n + 1) for n in range(count)], tails)
        return model

    def tail(self, model: StagedModel, sample: Sequence[int], classes: int, step_mode: str) -> nn.Module:
        """The read-out of a layer.

        Args:
            model: for its dtype and device.
            sample: shape of one sample of the layer's output at one step.
            classes: ``K``.
            step_mode: of the read-out.
        """
        return read_out(model, sample, classes, step_mode, self.opt.features)

    def finish(self, model: StagedModel) -> nn.Module:
        """The model without its read-outs, in multi-step mode."""
        return dismantle(model)

    def plan(self) -> dict[str, Any]:
        """``read_outs``: parameters of each auxiliary read-out."""
        return {"read_outs": [sum(p.numel() for p in part.tail.parameters()) for part in self._parts if not part.last]}
