"""``snnbench plan``: from what the user asks to an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from harness import registry
from harness.contracts import StagedModel, Unavailable
from harness.errors import UsageError
from harness.executors.server import ForkServer
from harness.ledger import BLOCK
from harness.plan import pool
from harness.plan.answer import Answer, reference_of
from harness.plan.candidates import BASELINE, Row, budgeted, chosen, missing, share_limits
from harness.plan.evidence import NOTHING, gather
from harness.plan.hardware import DEFAULT, Hardware
from harness.plan.size import Budget
from harness.plan.user import User
from harness.spec import CellSpec, LossSpec, Recipe, Ref
from harness.validation import usage_error

STATES = {"sgd": (1, 0), "adam": (2, 1), "adamw": (2, 1)}
"""Tensors of a parameter's size, and scalars, that torch's optimizers keep for a parameter (SGD with momentum)."""
SHAPE = "shape"
"""The installed data set that has nothing but a shape."""


@dataclass(frozen=True)
class Question:
    """What a user wants to know.

    Args:
        model: name of the model.
        model_options: its options.
        data: the data set with its options; give this or ``sample`` and ``classes``.
        sample: shape of one time step of one sample.
        classes: number of classes.
        T: time steps.
        batch: samples a step.
        precision: as in a cell.
        optimizer: as in a recipe.
        loss: as in a cell.
        budget: the device's memory, and the part that is not for tensors.
        methods: words of :func:`harness.plan.candidates.chosen`; empty: all.
        store: folder of records with evidence, or None.
        jobs: processes at the same time.
        timeout_s: of one method, in all its settings.
        hardware: what estimates are weighed as; None: :data:`harness.plan.hardware.DEFAULT`.
    """

    model: str
    budget: Budget
    model_options: dict[str, Any] = field(default_factory=dict)
    data: tuple[str, dict[str, Any]] | None = None
    sample: tuple[int, ...] | None = None
    classes: int | None = None
    T: int = 4
    batch: int = 32
    precision: str = "fp32"
    optimizer: str = "sgd"
    loss: str = "per_step"
    methods: tuple[str, ...] = ()
    store: Path | None = None
    jobs: int = 1
    timeout_s: float = pool.TIMEOUT_S
    hardware: Hardware | None = None

    def spec(self) -> CellSpec:
        """The subject as a predicted cell of BPTT.

        Raises:
            UsageError: an unknown model, data set or option.
        """
        return subject_spec(
            registry.complete("models", self.model, self.model_options, "--model-option"),
            self._data(),
            self.T,
            self.batch,
            self.precision,
            self.optimizer,
            self.loss,
        )

    def _data(self) -> Ref:
        if self.data is not None:
            return registry.complete("datasets", *self.data, where="--dataset")
        if self.sample is None or self.classes is None:
            raise UsageError("plan: give --dataset, or --input C,H,W and --classes K")
        return shape_ref(self.sample, self.classes, "--input")


def shape_ref(sample: Sequence[int], classes: int, where: str) -> Ref:
    """The data set that has nothing but this shape."""
    return registry.complete("datasets", SHAPE, {"sample": list(sample), "classes": classes}, where)


def subject_spec(model: Ref, data: Ref, T: int, batch: int, precision: str, optimizer: str, loss: str) -> CellSpec:
    """A predicted cell of plain BPTT.

    Raises:
        UsageError: a value that a cell cannot have.
    """
    try:
        return CellSpec(
            method=registry.complete("methods", BASELINE, {}, BASELINE),
            baseline=BASELINE,
            model=model,
            data=data,
            T=T,
            batch=batch,
            loss=LossSpec.model_validate({"kind": loss}),
            recipe=Recipe.model_validate({"optimizer": optimizer}),
            precision=precision,  # type: ignore[arg-type]
            profile="plan",
            phases=("memory",),
            predicted=True,
        )
    except ValidationError as error:
        raise usage_error(error, CellSpec, "plan", joint=".") from None


def build(spec: CellSpec) -> StagedModel:
    """Build the model once, so that a shape it cannot take is one error and not one a method.

    Raises:
        UsageError: it cannot be built for this input.
    """
    try:
        info = registry.create("datasets", spec.data).info()
        model: StagedModel = registry.create("models", spec.model).build(info.sample, info.classes)
    except (ValueError, Unavailable) as error:
        raise UsageError(f"--model {spec.model.name}: {error}") from None
    return model


def optimizer_bytes(model: nn.Module, spec: CellSpec) -> int:
    """Bytes of the optimizer's state, in the ledger's blocks."""
    copies, steps = STATES[spec.recipe.optimizer]
    blocks = [-(-parameter.nbytes // BLOCK) * BLOCK for parameter in model.parameters() if parameter.requires_grad]
    return copies * sum(blocks) + steps * BLOCK * len(blocks)


def answer(question: Question, server: ForkServer, tell: Callable[[Row], None] = lambda row: None) -> Answer:
    """Predict every method, each in a process of its own.

    Args:
        question: what the user wants to know.
        server: where the processes come from.
        tell: called for every method when it is done.

    Raises:
        UsageError: a wrong option.
    """
    spec = question.spec()
    available = question.budget.available_bytes
    chosen(question.methods, None)  # a wrong name is told before anything runs
    model = build(spec)
    spec, remarks = _told(spec)
    evidence = NOTHING if question.store is None else gather(question.store, spec, question.hardware)
    wanted = chosen(question.methods, available - optimizer_bytes(model, spec))
    jobs = [(ref, not budgeted(ref)) for ref in wanted]
    extra = [] if any(ref.name == BASELINE for ref in wanted) else [(spec.method, False)]
    hardware = question.hardware or DEFAULT
    found = pool.rows(spec, [*extra, *jobs], available, server, question.jobs, question.timeout_s, tell, hardware)
    rows = share_limits(found[len(extra) :])
    absent = () if question.methods else tuple(f"left out: {name}: {reason}" for name, reason in missing())
    told = (*remarks, *absent)
    return Answer(spec, question.budget, rows, reference_of(found), evidence, told, question.hardware)


def _told(spec: CellSpec) -> tuple[CellSpec, tuple[str, ...]]:
    """The cell of a user's model that was built, with the loss that its output allows, and what to tell of it."""
    source = registry.create("models", spec.model)
    found = source.decided(registry.create("datasets", spec.data).info().sample) if isinstance(source, User) else None
    if found is None:
        return spec, ()
    loss = spec.loss.model_copy(update={"kind": "time_mean"}) if found.time_mean else spec.loss
    return spec.model_copy(update={"loss": loss}), found.notes
