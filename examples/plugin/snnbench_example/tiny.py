"""The smallest network that there is something to train in."""

from pydantic import Field
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import Size, nn

from snnbench import ModelSource, Options, StagedModel


class TinyOptions(Options):
    """Options of :class:`Tiny`.

    Attributes:
        hidden: number of neurons.
        tau: their membrane time constant in steps.
    """

    hidden: int = Field(32, ge=1)
    tau: float = Field(2.0, gt=1.0)


class Tiny(ModelSource):
    """One layer of LIF neurons between two linear ones."""

    name = "tiny"
    summary = "one layer of LIF neurons between two linear ones"
    source = "-"
    options = TinyOptions

    def build(self, sample, classes):
        """Samples of shape ``sample`` to logits ``[T, N, classes]``; everything in multi-step mode."""
        node = neuron.LIFNode(self.opt.tau, decay_input=False, surrogate_function=surrogate.ATan(), step_mode="m")
        stage = nn.Sequential(
            layer.Flatten(step_mode="m"), layer.Linear(Size(sample).numel(), self.opt.hidden, step_mode="m"), node
        )
        return StagedModel([stage], layer.Linear(self.opt.hidden, classes, step_mode="m"), normalisation="none")
