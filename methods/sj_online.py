"""SpikingJelly 2.0's own online neurons as peers: ``SLTTLIFNode``, and ``OTTTLIFNode`` with ``OTTTSequential``.

The rules are those of :mod:`methods.sltt` and :mod:`methods.ottt`; here they run as SpikingJelly's users run them, in the
loop of its ``learning.ottt_online_training`` with one update at the end::

    for t:  L(net(x[t]), y) / T  -> backward;  detach_net(net)

Every LIF of the model gives way to SpikingJelly's node with settings of its own, so the **model is another one**: the
comparison is with BPTT through ``LIFNode`` of the same settings. ``settings``:

* ``sj-sltt``, ``default``: tau 2, decayed input, hard reset to 0, sigmoid surrogate (alpha 4). ``paper``: tau 1.1, input
  not decayed, soft reset, triangle ``max(0, 1 - |u - Vth|)``.
* ``sj-ottt``, ``default``: tau 2, input not decayed, soft reset, sigmoid surrogate (alpha 4). The authors' are the same;
  ``paper`` adds that it was published without batch normalisation, and takes weight-standardised models only.

Threshold 1 in all of them. ``OTTTSequential`` runs the forward of every traced layer twice: on the spikes without a graph,
for the value, and on the trace with one, for the gradient (:mod:`methods.ottt` runs it once). It pools and drops out
traces as it does spikes; where that is not linear (max pooling) the two are different rules.

Stored: what autograd saves for one time step, membranes, and for OTTT the traces: flat in ``T``.

Needs from the model: as :mod:`methods.sltt`, and ``LIFNode`` everywhere; OTTT also that the model is one flat sequence.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

from spikingjelly.activation_based import layer, neuron, surrogate
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from harness.contracts import Loss, Options, StagedModel
from methods.bptt_fused import neurons
from methods.sltt import SLTT

Nodes = Iterator[tuple[str, nn.Module]]


class SJOnlineOptions(Options):
    """Options of both methods.

    Attributes:
        settings: of the neuron: SpikingJelly's ``default`` or the ``paper``'s.
    """

    settings: Literal["default", "paper"] = "default"


class SJOnline(SLTT):
    """SLTT's loop on a model whose neurons are replaced by one of SpikingJelly's online nodes."""

    options: ClassVar[type[SJOnlineOptions]] = SJOnlineOptions
    node: ClassVar[type[neuron.LIFNode]]

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or which of the needs above is not met."""
        if not neurons(model):
            return f"the model has no neuron that {self.node.__name__} could replace"
        for name, module in neurons(model):
            if type(module) is not neuron.LIFNode:
                return f"{self.node.__name__} is a LIF neuron, but {name} is a {type(module).__name__}"
        return super().supports(model, loss)

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        """Replace the neurons; single-step mode."""
        _replace(model, lambda _: self.node(**self.settings()))
        return super().prepare(model, example, loss)

    def finish(self, model: StagedModel) -> nn.Module:
        """The model with ``LIFNode`` of the same settings, in multi-step mode."""
        _replace(model, _plain)
        return super().finish(model)

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Arguments of the node; what is not given is SpikingJelly's default."""


class SJSLTT(SJOnline):
    """SpikingJelly's ``SLTTLIFNode``."""

    name = "sj-sltt"
    summary = "SpikingJelly's SLTTLIFNode as its users run it (peer of sltt)"
    paper = "Meng et al.: Towards memory- and time-efficient backpropagation for training SNNs, ICCV 2023"
    model = "changed: every LIF becomes SpikingJelly's SLTTLIFNode, with its default or the paper's settings"
    node = neuron.SLTTLIFNode

    def settings(self) -> dict[str, Any]:
        """See :meth:`SJOnline.settings`."""
        if self.opt.settings == "default":
            return {}
        triangle = surrogate.PiecewiseQuadratic(alpha=1.0)
        return {"tau": 1.1, "decay_input": False, "v_reset": None, "surrogate_function": triangle}


class FlatModel(StagedModel):
    """A staged model that runs as one ``OTTTSequential``, which has no parameters or names of its own."""

    sequence: list[layer.OTTTSequential]

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, K]`` of one step ``[N, ...]``."""
        out = self.sequence[0](x)
        return out[0] if isinstance(out, list) else out


class SJOTTT(SJOnline):
    """SpikingJelly's ``OTTTLIFNode`` in an ``OTTTSequential``."""

    name = "sj-ottt"
    summary = "SpikingJelly's OTTTLIFNode and OTTTSequential as its users run them (peer of ottt)"
    paper = "Xiao et al.: Online training through time for spiking neural networks, NeurIPS 2022"
    model = "changed: every LIF becomes SpikingJelly's OTTTLIFNode, with its default or the paper's settings"
    node = neuron.OTTTLIFNode

    def settings(self) -> dict[str, Any]:
        """See :meth:`SJOnline.settings`; the defaults are the paper's."""
        return {}

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or which of the needs above is not met."""
        if self.opt.settings == "paper" and model.normalisation != "weight_standardised":
            return (
                f"the paper's setting is a weight_standardised model; this one's normalisation is {model.normalisation}"
            )
        return super().supports(model, loss) or _unflattenable(model)

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        """Replace the neurons; the model's layers run as one flat sequence, under their names."""
        super().prepare(model, example, loss)
        model.__class__ = FlatModel
        model.sequence = [layer.OTTTSequential(*(module for _, module in _leaves(model)))]  # type: ignore[assignment]
        return model

    def finish(self, model: StagedModel) -> nn.Module:
        """See :meth:`SJOnline.finish`."""
        model.__class__ = StagedModel
        del model.sequence
        return super().finish(model)


def _replace(model: nn.Module, make: Callable[[Any], nn.Module]) -> None:
    """Another neuron in the place of each."""
    new = {node: make(node).train(node.training) for _, node in neurons(model)}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]


def _plain(node: Any) -> neuron.LIFNode:
    return neuron.LIFNode(
        node.tau, node.decay_input, node.v_threshold, node.v_reset, node.surrogate_function, node.detach_reset
    )


def _leaves(model: StagedModel) -> Nodes:
    """What a flat sequence consists of, in the order of the forward; names are those in the model."""

    def inside(name: str, module: nn.Module) -> Nodes:
        if type(module).forward is not nn.Sequential.forward:
            yield name, module
            return
        for child, part in module._modules.items():
            if part is not None:
                yield from inside(f"{name}.{child}", part)

    yield from inside("stages", model.stages)
    yield from inside("head", model.head)


def _unflattenable(model: StagedModel) -> str | None:
    """Why ``model`` cannot run as an ``OTTTSequential``, or None."""
    if type(model).forward is not StagedModel.forward:
        return f"OTTTSequential runs a flat sequence, but {type(model).__name__} overrides StagedModel.forward"
    traced = False
    for name, module in _leaves(model):
        spikes = isinstance(module, neuron.BaseNode)
        if not spikes and neurons(module):
            return f"OTTTSequential runs a flat sequence, but {name} ({type(module).__name__}) has neurons inside"
        if traced and isinstance(module, _NormBase):
            return f"OTTTSequential runs layers after a neuron twice: {name} would update its statistics twice a step"
        learns = next(module.parameters(), None) is not None
        traced = spikes or (traced and not learns)
    return None
