"""ELL: local learning with a classifier per layer, nothing through time (Ma, Yan, Tang, IEEE Trans. Cybernetics 2022).

Every layer ``l`` has a classifier ``G_l`` of its own and learns from its loss alone; the gradient goes neither to the
layer before, ``sg(s_{l-1}[t])``, nor to the time step before, ``sg(u_l[t-1])``. It is SLTT on [layer + classifier]::

    for t: for l:  s_l[t] = f_l(sg(s_{l-1}[t]), sg(u_l[t-1]));  backward(L(G_l s_l[t], y) / T)

As published, a classifier reads at most ``features`` inputs: the layer's output is average-pooled until it has no more.
Unlike there, it has no neuron and a loss of its own kind, but is linear and has the cell's objective; the last layer's
classifier is the model's own head. ``update=per_step`` updates after every time step, as published.

Stored: what autograd saves for ONE layer and its classifier at ONE time step, and all membranes: flat in ``T``. The
classifiers' parameters, gradients and optimizer state come on top.

Needs from the model: as :mod:`methods.sltt`, and stages that describe its forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from harness.contracts import Loss, Options, StagedModel, StepOutput
from methods._layerwise import LayerWise
from methods._local import learn_steps


class ELLOptions(Options):
    """Options of :class:`ELL` and :class:`methods.fell.FELL`.

    Attributes:
        features: inputs of a classifier at most, but at least one a channel; the default is the published one.
        update: ``accumulated``: once a batch; ``per_step``: after every time step.
    """

    features: int = Field(1024, ge=1)
    update: Literal["accumulated", "per_step"] = "accumulated"


class ELL(LayerWise):
    """SLTT on every layer with its classifier."""

    name = "ell"
    summary = "local learning: a classifier per layer, no gradient between layers or time steps"
    paper = "Ma, Yan, Tang: Deep spike learning with local classifiers, IEEE Transactions on Cybernetics 2022"
    flat_in_time = True
    options: ClassVar[type[ELLOptions]] = ELLOptions

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """See :meth:`Method.step`; ``update`` is called once, or ``T`` times."""
        per_step = self.opt.update == "per_step"
        local = Loss(loss.kind, loss.criterion)
        return learn_steps(model, self._parts, x, y, loss, local, update, per_step=per_step)
