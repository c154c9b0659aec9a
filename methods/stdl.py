"""STDL: spatio-temporal decoupled learning (arXiv 2506.01117); a reconstruction.

Only the abstract was at hand. It says: the network is cut into ``K`` subnetworks, each trained with an auxiliary
network that is the largest subset of its subsequent layers under a memory constraint, and time is decoupled for online
learning. How it cuts, searches and decouples is not known to us; what follows is our reading, with the open choices as
options.

The network's layers are cut into ``K`` runs ``S_k`` of equal length. ``A_k`` copies the architecture of later layers,
with weights of its own, and ends in global average pooling and a linear read-out; the last subnetwork ends in the
model's head instead::

    for t: for k:  h <- sg(h);  h = S_k(h);  L(A_k(h), y) / T  backward                              then one update

``temporal`` says what happens in time: membranes detached between steps (``sltt``), weight gradients from traces
(``ottt``), or the whole sequence in each subnetwork (``bptt``, where the loops over ``t`` and ``k`` change places).
``aux_rule`` says which layers ``A_k`` copies (:mod:`methods._selection`); ``budget_bytes`` bounds the activation of
``S_k`` and ``A_k`` together, measured by the ledger under fake tensors. Where ``S_k`` alone is above it, ``A_k`` is the
read-out only, and the plan shows it. The budget is in the model's own precision: autocast needs less.

Stored: the graph of one subnetwork with its auxiliary network, for one time step (``bptt``: all of them), and all
membranes. Parameters, gradients and optimizer state of the auxiliary networks come on top, and are in the ledger.

Needs from the model: stages that describe its forward; for ``sltt`` and ``ottt`` what these methods need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from harness.contracts import Loss, Method, Options, StagedModel, StepOutput
from methods._local import Part, assemble, dismantle, layers_of, learn_sequence, learn_steps, partition, unsupported
from methods._measure import Setting, faked, faking, shapes
from methods._selection import AuxRule, Choice, Network, select, unlimited
from methods._traces import Traced, untraceable
from methods.fell import EligibilityTraces
from methods.ottt import InputTraces

_CHOICES: dict[tuple[Any, ...], list[Choice]] = {}
"""Of this process: a cell prepares the same model several times, and measuring takes seconds."""


class STDLOptions(Options):
    """Options of :class:`STDL`.

    Attributes:
        K: number of subnetworks.
        budget_bytes: activation that a subnetwork and its auxiliary network may need; None is unlimited.
        aux_rule: which later layers an auxiliary network copies.
        temporal: the rule in time.
    """

    K: int = Field(2, ge=1)
    budget_bytes: int | None = Field(None, ge=0)
    aux_rule: AuxRule = "max_subset"
    temporal: Literal["sltt", "ottt", "bptt"] = "sltt"


class STDL(Method):
    """Subnetworks with auxiliary networks under a memory budget."""

    name = "stdl"
    summary = (
        "reconstruction of STDL: K subnetworks, each with an auxiliary network of later layers under a byte budget"
    )
    paper = "spatio-temporal decoupled learning, arXiv:2506.01117"
    gradient = "biased"
    flat_in_time = True
    reconstruction = True
    options: ClassVar[type[STDLOptions]] = STDLOptions

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self._choices: list[Choice] | None = None
        self._source: Literal["rule", "measured", "replay"] = "rule"
        self._runs: list[range] = []
        self._parts: list[Part] = []
        # The class speaks for the default, this instance for itself.
        self.flat_in_time = self.opt.temporal != "bptt"  # type: ignore[misc]

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or which of the needs above is not met."""
        layers = len(layers_of(model))
        if layers < self.opt.K:
            return f"K is {self.opt.K}, but the model has {layers} layers with parameters; allowed: 1 to {layers}"
        reason = untraceable(model, loss) if self.opt.temporal == "ottt" else None
        return reason or unsupported(model, loss, online=self.opt.temporal != "bptt")

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        """Choose, build and attach the auxiliary networks.

        Raises:
            ValueError: a replayed plan belongs to another model or other options.
        """
        mode = "m" if self.opt.temporal == "bptt" else "s"
        functional.set_step_mode(model, mode)
        self._runs = partition(len(layers_of(model)), self.opt.K)
        network = Network(model, shapes(model, example, mode), mode)
        if self._choices is None:
            self._choices = self._choose(network, example, loss)
        if len(self._choices) != self.opt.K - 1:
            raise ValueError(
                f"the plan has {len(self._choices)} auxiliary networks; K = {self.opt.K} needs {self.opt.K - 1}"
            )
        self._parts = assemble(model, self._runs, [network.auxiliary(choice) for choice in self._choices])
        return model

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """See :meth:`Method.step`; the gradients of all backwards accumulate, ``update`` is called once."""
        local = Loss(loss.kind, loss.criterion)
        if self.opt.temporal == "bptt":
            return learn_sequence(self._parts, x, y, loss, local, update)
        if self.opt.temporal == "sltt":
            return learn_steps(model, self._parts, x, y, loss, local, update)
        with InputTraces(model):
            return learn_steps(model, self._parts, x, y, loss, local, update)

    def finish(self, model: StagedModel) -> nn.Module:
        """The model without its auxiliary networks."""
        return dismantle(model)

    def plan(self) -> dict[str, Any]:
        """The subnetworks and their auxiliary networks.

        ``layers``: of each subnetwork, by number; a layer is a stage with parameters and those without after it.
        ``source`` of the choice: ``rule`` (no budget, nothing measured), ``measured`` or ``replay``.
        ``auxiliaries``, for all subnetworks but the last: the ``layers`` copied; the sample shapes (``inputs``) before
        each copy and the read-out; ``activation_bytes`` of subnetwork and auxiliary network (null if not measured);
        ``within_budget``; ``parameter_bytes`` of the auxiliary network: its gradients are as many again, and the
        optimizer's state a multiple of them.
        """
        tails = [part.tail for part in self._parts if not part.last]
        reports = [self._report(choice, tail) for choice, tail in zip(self._choices or [], tails, strict=True)]
        return {"layers": [list(run) for run in self._runs], "source": self._source, "auxiliaries": reports}

    def replay(self, plan: dict[str, Any]) -> None:
        """Take the choice of a real run's :meth:`plan`."""
        self._choices = [
            Choice(tuple(a["layers"]), tuple(map(tuple, a["inputs"])), a["activation_bytes"])
            for a in plan["auxiliaries"]
        ]
        self._source = "replay"

    def _choose(self, network: Network, example: Tensor, loss: Loss) -> list[Choice]:
        budget, rule = self.opt.budget_bytes, self.opt.aux_rule
        if budget is None:
            return unlimited(network, self._runs, rule)
        self._source = "measured"
        key = (
            repr(network.model),
            tuple(network.shapes),
            tuple(example.shape),
            example.dtype,
            example.device,
            repr(loss.criterion),
            repr(self.opt),
        )
        if key not in _CHOICES:
            with faking() as mode:
                fake = Network(faked(network.model, mode), network.shapes, network.step_mode)
                setting = Setting.of(example, loss, network.step_mode, self._traces(fake.model))
                _CHOICES[key] = select(fake, self._runs, rule, budget, setting)
        return _CHOICES[key]

    def _traces(self, model: nn.Module) -> Callable[[nn.Module], Traced] | None:
        if self.opt.temporal != "ottt":
            return None
        return lambda part: EligibilityTraces(nn.ModuleList([model, part]))

    def _report(self, choice: Choice, tail: nn.Module) -> dict[str, Any]:
        measured, budget = choice.activation_bytes, self.opt.budget_bytes
        return {
            "layers": list(choice.layers),
            "inputs": [list(shape) for shape in choice.inputs],
            "activation_bytes": measured,
            "within_budget": None if measured is None or budget is None else measured <= budget,
            "parameter_bytes": sum(p.nbytes for p in tail.parameters()),
        }
