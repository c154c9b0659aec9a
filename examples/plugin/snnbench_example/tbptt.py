"""Truncated BPTT: the sequence in windows, and no gradient from one window to the one before.

The membranes go on from window to window, but their graph does not. For windows ``w`` of ``W`` time steps::

    for w:  o = net(x[w]);  backward(sum_{t in w} L(o[t], y) / T);  v <- sg(v)            then one update

Biased: whatever a spike does to the loss of a later window is missing. With ``W >= T`` it is BPTT, with ``W = 1`` SLTT.

Stored: what autograd saves for one window. That is flat in ``T`` once ``T`` is above ``W``.

Needs from the model: a loss with per-step shares, and no batch statistics over the whole sequence.
"""

from pydantic import Field
from spikingjelly.activation_based import functional

from snnbench import Method, Options, StepOutput


class TBPTTOptions(Options):
    """Options of :class:`TBPTT`.

    Attributes:
        window: time steps ``W`` that the gradient reaches back, at most.
    """

    window: int = Field(2, ge=1)


class TBPTT(Method):
    """One backward a window, one update a batch."""

    name = "tbptt"
    summary = "truncated BPTT: the gradient stops at the border of a window of time steps"
    paper = "Williams, Peng: An efficient gradient-based algorithm for on-line training of recurrent networks, 1990"
    gradient = "biased"
    options = TBPTTOptions

    def supports(self, model, loss):
        """None, or the reason why not: it becomes the cell's result."""
        if loss.kind != "per_step":
            return f"needs a per_step loss, which a window has a share of; this one is {loss.kind}"
        if model.normalisation == "over_time":
            return "a window has no statistics over the whole sequence; the model's normalisation is over_time"
        return None

    def step(self, model, x, y, loss, update):
        """Forward and backward of one batch ``x [T, N, ...]``; the harness has reset the membranes."""
        steps, total, logits = len(x), 0.0, 0.0
        for window in x.split(self.opt.window):
            out = model(window)
            share = sum(loss.at_step(o, y, steps) for o in out)
            loss.backward(share)
            functional.detach_net(model)
            total = total + share.detach()
            logits = logits + out.detach().sum(0) / steps
        update()
        return StepOutput(total, logits)
