"""SLTT: spatial learning through time (Meng et al., ICCV 2023).

The temporal path of the gradient is dropped: ``dL/du_l[t]`` takes only the loss of step ``t`` and the layers above, not
``u_l[t+1]``. In code: the membrane is detached between steps, and step ``t``'s share of the loss, ``L(o[t], y) / T``,
is propagated back at once::

    for t:  o[t] = net(x[t]);  backward(L(o[t], y) / T);  v_l[t] <- sg(v_l[t])            then one update

Per-step backwards add up to one backward on the detached graph. The gradient is BPTT's for ``T = 1`` or without leak
(``lam = 0``), and always for a linear read-out after the last neuron; otherwise it is biased.

Stored: what autograd saves for ONE time step, the membranes, and a running mean of the logits: flat in ``T``.

Needs from the model: a loss with per-step shares, normalisation within a step (statistics over ``T x N`` would need the
whole sequence), and modules that have a single-step mode, each neuron in one place only.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from harness.contracts import Loss, StagedModel, StepOutput
from methods._online import Online, Running, learn


class SLTT(Online):
    """Backward at every time step, membranes detached between steps, one update."""

    name = "sltt"
    summary = "spatial learning through time: backward at every step, no gradient through the membrane"
    paper = "Meng et al.: Towards memory- and time-efficient backpropagation for training SNNs, ICCV 2023"

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """See :meth:`Method.step`; gradients of the ``T`` backwards accumulate, ``update`` is called once."""
        running = Running(x.shape[0])
        for t in range(x.shape[0]):
            learn(model, x[t], y, loss, running)
        update()
        return running.output()
