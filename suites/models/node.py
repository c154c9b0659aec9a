"""One layer of neurons by itself, to see what a node keeps of T steps."""

from __future__ import annotations

from typing import ClassVar

from spikingjelly.activation_based import layer
from torch import nn

from harness.contracts import ModelSource, StagedModel
from suites.models.neurons import NeuronOptions, make_neuron
from suites.models.norm import NormMode


class NodeOptions(NeuronOptions):
    """Options of :class:`Node`: the neuron's."""


class Node(ModelSource):
    """A linear layer, then neurons whose output is the logits.

    The ledger's *saved* bytes leave the logits out and what was there before the forward (input, weights); the linear
    layer keeps nothing else. So what is saved is what the neurons keep beyond their own output, which in a network is
    the next layer's input and kept on its account.
    """

    name = "node"
    summary = "one layer of neurons whose output is the logits: what a node keeps beyond its output"
    source = "-"
    options: ClassVar[type[NodeOptions]] = NodeOptions

    def build(self, sample: tuple[int, ...], classes: int) -> StagedModel:
        """See :meth:`ModelSource.build`; as many neurons as classes."""
        opt: NodeOptions = self.opt
        if len(sample) != 1:
            raise ValueError(f"node takes samples of shape [features], not {list(sample)}")
        norm: NormMode = "none"
        linear = layer.Linear(sample[0], classes, step_mode="m")
        return StagedModel([nn.Sequential(linear, make_neuron(opt))], nn.Identity(), norm)
