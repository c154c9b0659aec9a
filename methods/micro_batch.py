"""Gradient accumulation over micro-batches: the batch in ``chunks`` slices, one backward each, one update.

For a loss that is a mean over the batch, with slices ``B_c`` of ``n_c`` of the ``N`` samples::

    L(B) = sum_c (n_c / N) L(B_c)        grad L(B) = sum_c (n_c / N) grad L(B_c)

Stored: what autograd saves for one slice; memory falls with ``chunks`` and still grows with ``T``.

The equation holds while every sample has the network for itself. **Batch normalisation sees the micro-batch**: its
statistics are those of a slice, and running statistics are updated ``chunks`` times a step. That is another network, so
the method is declared ``model = "changed: ..."`` and ``gradient = "exact"``: what it prepares is the network that runs
slice by slice in training, and its gradient equals BPTT's of that network, which keeps the graphs of all slices. Calling
it ``biased`` instead would put it beside rules that drop paths of the gradient, which it does not. Without normalisation
over samples the prepared network is the network as built, and the gradient is plain BPTT's, up to the order of a sum.
Dropout draws its masks slice by slice: other draws than BPTT's from the same distribution.

Needs from the model: nothing. The criterion has to be a mean over samples, as all of the harness's are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from harness.contracts import Loss, Method, Options, StagedModel, StepOutput, reset_states


class MicroBatchOptions(Options):
    """Options of :class:`MicroBatch`.

    Attributes:
        chunks: slices of the batch; sizes differ by at most one, and there are no more of them than samples.
    """

    chunks: int = Field(4, ge=1)


class Sliced(StagedModel):
    """Mixed into a model's class: a training batch runs slice by slice; states left are those of the last slice."""

    chunks: int

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[T, N, K]`` of ``x [T, N, ...]``; in evaluation the whole batch at once."""
        if not self.training:
            return super().forward(x)
        return torch.cat([self.run(part) for part in slices(x, 1, self.chunks)], dim=1)

    def run(self, part: Tensor) -> Tensor:
        """Logits ``[T, n, K]`` of one slice ``[T, n, ...]``, from initial states."""
        reset_states(self)
        return super().forward(part)


def slices(x: Tensor, dim: int, chunks: int) -> tuple[Tensor, ...]:
    """``x`` along ``dim`` in at most ``chunks`` parts, none of them empty; as views."""
    return torch.tensor_split(x, min(chunks, x.shape[dim]), dim)


class MicroBatch(Method):
    """A forward and a backward for every slice of the batch, one update."""

    name = "micro-batch"
    summary = "gradient accumulation over slices of the batch; batch normalisation sees the slice"
    paper = "-"
    gradient = "exact"
    model = "changed: batch normalisation sees the micro-batch"
    options: ClassVar[type[MicroBatchOptions]] = MicroBatchOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._sizes: list[int] = []

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        """The model, in place, as one that runs slice by slice: its class is a subclass of what it was."""
        model.__class__ = type(f"Sliced{type(model).__name__}", (Sliced, type(model)), {"chunks": self.opt.chunks})
        return model

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """See :meth:`Method.step`; gradients of the slices accumulate, ``update`` is called once."""
        assert isinstance(model, Sliced)
        values, logits = [], []
        pairs = list(zip(slices(x, 1, model.chunks), slices(y, 0, model.chunks), strict=True))
        for part, target in pairs:
            out = model.run(part)
            value = loss(out, target) * (part.shape[1] / x.shape[1])
            loss.backward(value)
            values.append(value.detach())
            logits.append(out.detach().mean(0))
            del out, value
        update()
        self._sizes = [part.shape[1] for part, _ in pairs]
        return StepOutput(torch.stack(values).sum(), torch.cat(logits))

    def plan(self) -> dict[str, Any]:
        """``slices``: samples of each; empty before the first step."""
        return {"slices": self._sizes}
