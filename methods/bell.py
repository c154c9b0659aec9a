"""BELL: local learning with BPTT inside each layer (Ma, Yan, Tang, IEEE Trans. Cybernetics 2022).

A classifier per layer, as in :mod:`methods.ell`, and no gradient between layers; inside a layer, through all of time::

    for l:  s_l[1..T] = f_l(sg(s_{l-1}[1..T]));  backward(L(G_l s_l[1..T], y))                       then one update

Unlike as published, a classifier has no neuron, and the objective is the cell's; the last layer's classifier is the
model's own head.

Stored: a layer's output over ``T`` until the next layer has learnt from it, and what autograd saves for ONE layer and
its classifier over ``T``: linear in ``T``, but of one layer only. The classifiers' parameters, gradients and optimizer
state come on top.

Needs from the model: stages that describe its forward, and no state shared between them. Any normalisation, any loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from harness.contracts import Loss, Options, StagedModel, StepOutput
from methods._layerwise import LayerWise
from methods._local import learn_sequence


class BELLOptions(Options):
    """Options of :class:`BELL`.

    Attributes:
        features: inputs of a classifier at most, but at least one a channel; the default is the published one.
    """

    features: int = Field(1024, ge=1)


class BELL(LayerWise):
    """BPTT in every layer with its classifier, one layer after the other."""

    name = "bell"
    summary = "local learning: a classifier per layer, BPTT inside the layer"
    paper = "Ma, Yan, Tang: Deep spike learning with local classifiers, IEEE Transactions on Cybernetics 2022"
    online = False
    options: ClassVar[type[BELLOptions]] = BELLOptions

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """See :meth:`Method.step`; ``update`` is called once, after the last layer."""
        return learn_sequence(self._parts, x, y, loss, Loss(loss.kind, loss.criterion), update)
