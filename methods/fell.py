"""FELL: local learning with forward eligibility traces (Ma, Yan, Tang, IEEE Trans. Cybernetics 2022).

As :mod:`methods.ell`, a classifier per layer and no gradient between layers; within the layer time counts, through a
trace of its input that is known forwards. With ``delta_l[t] = dL_l[t]/du_l[t]``, membranes detached::

    e_l[t] = lam e_l[t-1] + s_{l-1}[t]                lam = 1 - 1/tau
    grad W_l = sum_t delta_l[t] e_l[t]^T              sum over k <= t of lam^(t-k) is how W_l acted on u_l[t]

For a layer with one weight, no normalisation and a soft, detached reset this is BPTT inside the layer (the weights'
gradients of :mod:`methods.bell`), without storing the sequence. Biases and the parameters of a normalisation have no
trace. Unlike in :mod:`methods.ottt` the first layer's input has a trace; the read-outs, without membrane, have none.

Stored: what autograd saves for ONE layer and its classifier at ONE time step, the membranes, and a trace for each
weight: flat in ``T``. The classifiers' parameters, gradients and optimizer state come on top.

Needs from the model: as :mod:`methods.ottt`, stages that describe its forward, and neurons in them.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from harness.contracts import Loss, StagedModel, StepOutput
from methods._local import learn_steps
from methods._traces import untraceable_stages
from methods.ell import ELL
from methods.ottt import InputTraces


class EligibilityTraces(InputTraces):
    """``e[t] = lam e[t-1] + x[t]`` of the input of every weight layer, the first one included."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._spiking = True


class FELL(ELL):
    """A classifier per layer, weights learn from presynaptic traces."""

    name = "fell"
    summary = "local learning: a classifier per layer, forward eligibility traces in place of BPTT inside the layer"

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or which of the needs above is not met."""
        return untraceable_stages(model, loss) or super().supports(model, loss)

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """See :meth:`Method.step`; ``update`` is called once, or ``T`` times."""
        per_step = self.opt.update == "per_step"
        local = Loss(loss.kind, loss.criterion)
        with EligibilityTraces(model.stages):
            return learn_steps(model, self._parts, x, y, loss, local, update, per_step=per_step)
