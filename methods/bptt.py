"""Back-propagation through time, the reference of every other method.

``u[t] = lam v[t-1] + I[t]``, ``s[t] = H(u[t] - Vth)``, with a surrogate ``psi`` for the derivative of ``H``; autograd
runs through all ``T`` steps of the unrolled network.

This is what SpikingJelly's users run: modules in multi-step mode with the default kernels, one forward over the whole
sequence, one backward.

Stored: whatever autograd saves, in every layer and at every time step; memory grows with ``T`` in all layers.
Needs from the model: nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from harness.contracts import Loss, Method, StagedModel, StepOutput


class BPTT(Method):
    """SpikingJelly's multi-step training loop."""

    name = "bptt"
    summary = "back-propagation through time, as SpikingJelly's users run it: the reference"
    paper = "Neftci, Mostafa, Zenke: Surrogate gradient learning in spiking neural networks, arXiv:1901.09948"
    gradient = "exact"

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """See :meth:`Method.step`."""
        logits = model(x)
        value = loss(logits, y)
        loss.backward(value)
        update()
        return StepOutput(value.detach(), logits.detach().mean(0))
