"""The identity of a cell: one measurement, described completely and hashed canonically.

The hash covers what is measured, never how it is run: no timeout, order, host, thread count or job count. A finished
cell is therefore found again whatever those were.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

SPEC_VERSION = 1

Phase = Literal["fidelity", "memory", "time", "ops", "train"]
PHASES: tuple[Phase, ...] = ("fidelity", "memory", "time", "ops", "train")
"""Order in which a worker runs them, after ``build``."""

Precision = Literal["fp32", "tf32", "amp-bf16", "amp-fp16"]
Device = Literal["cpu", "cuda"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Ref(_Frozen):
    """A plugin by name, with its options complete (defaults filled in)."""

    name: str
    options: dict[str, JsonValue] = {}

    @property
    def label(self) -> str:
        """Name and options in one line, for tables: ``stdl(K=4)``."""
        inside = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}({inside})" if inside else self.name


OPTIONS_OF_CRITERION: dict[str, dict[str, float]] = {
    "ce_mse": {"mse_weight": 0.05},  # OTTT (Xiao et al., NeurIPS 2022), train_cifar.py, loss_lambda
    "tet": {"tet_lambda": 1e-3, "tet_means": 1.0},  # TET (Deng et al., ICLR 2022), main_training_parallel.py
}
"""Options that one criterion alone has, with their defaults."""


def _of_criterion(value: Any, info: ValidationInfo) -> Any:
    """The criterion's own default where none is given, so that a cell's identity names the number that was used."""
    criterion, name = info.data.get("criterion"), str(info.field_name)
    defaults = OPTIONS_OF_CRITERION.get(str(criterion), {})
    if value is None:
        return defaults.get(name)
    # An unknown criterion is reported by its own field.
    if criterion is not None and name not in defaults:
        owner = next(key for key, options in OPTIONS_OF_CRITERION.items() if name in options)
        raise ValueError(f"an option of the criterion {owner!r}, but the criterion is {criterion!r}")
    return value


_Filled = BeforeValidator(_of_criterion)
_Share = Annotated[Annotated[float, Field(ge=0.0, le=1.0)] | None, _Filled, Field(validate_default=True)]
_Number = Annotated[Annotated[float, Field(allow_inf_nan=False)] | None, _Filled, Field(validate_default=True)]


class LossSpec(_Frozen):
    """``per_step``: mean over t of L(o[t], y); ``time_mean``: L(mean o, y).

    ``cross_entropy``; ``mse``: to the one-hot target; ``ce_mse``: ``(1 - mse_weight) CE + mse_weight MSE``, to the
    one-hot target (OTTT, SLTT); ``tet``: ``(1 - tet_lambda) CE + tet_lambda MSE``, where every logit is drawn to the
    constant ``tet_means`` (Deng et al., ICLR 2022).
    """

    kind: Literal["per_step", "time_mean"] = "per_step"
    criterion: Literal["cross_entropy", "mse", "ce_mse", "tet"] = "cross_entropy"
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    mse_weight: _Share = None
    tet_lambda: _Share = None
    tet_means: _Number = None

    @model_validator(mode="after")
    def _consistent(self) -> LossSpec:
        if self.criterion == "tet" and self.kind != "per_step":
            raise ValueError("the criterion 'tet' is a mean over time steps: it needs kind = 'per_step'")
        if self.criterion == "mse" and self.label_smoothing:
            raise ValueError("the criterion 'mse' has no label_smoothing")
        return self


def _as_tuple(value: Any) -> Any:
    """TOML has lists; strict validation takes tuples."""
    return tuple(value) if isinstance(value, list) else value


class RecipeKeys(_Frozen):
    """The keys of a recipe; a file may give some of them in one place and some in another."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "cosine", "multistep"] = "constant"
    milestones: Annotated[tuple[PositiveInt, ...], BeforeValidator(_as_tuple)] = ()
    """Epochs after which ``multistep`` multiplies the learning rate by ``gamma``."""
    gamma: float = Field(default=0.1, gt=0, le=1)
    min_lr: float = Field(default=0.0, ge=0)
    """Where ``cosine`` ends."""
    warmup_epochs: NonNegativeInt = 0
    """The learning rate rises linearly from ``warmup_lr`` during these; the schedule is counted from the beginning."""
    warmup_lr: float = Field(default=0.0, ge=0)
    epochs: PositiveInt = 1
    clip_grad_norm: float | None = Field(default=None, gt=0)


class Recipe(RecipeKeys):
    """How training updates the weights."""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if (self.schedule == "multistep") != bool(self.milestones):
            raise ValueError("milestones belong to schedule = 'multistep', which needs at least one")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones have to ascend, but are {list(self.milestones)}")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr is {self.min_lr:g}, but must not be above lr = {self.lr:g}")
        return self


class CellSpec(_Frozen):
    """Everything that defines one measurement."""

    version: Literal[1] = 1
    method: Ref
    baseline: str = Field(description="the method that ratios are taken against")
    model: Ref
    data: Ref
    T: PositiveInt
    batch: PositiveInt
    loss: LossSpec = LossSpec()
    recipe: Recipe = Recipe()
    precision: Precision = "fp32"
    device: Device = "cpu"
    devices: PositiveInt = 1
    """How many of them share every batch, in a process each."""
    seed: NonNegativeInt = 0
    profile: str
    phases: tuple[Phase, ...]
    predicted: bool = False

    @field_validator("phases")
    @classmethod
    def _ordered(cls, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        if not phases:
            raise ValueError(f"at least one of {', '.join(PHASES)}")
        return tuple(p for p in PHASES if p in phases)

    @model_validator(mode="after")
    def _shared(self) -> CellSpec:
        if self.batch % self.devices:
            raise ValueError(f"batch = {self.batch} cannot be shared equally by devices = {self.devices}")
        if self.predicted and self.devices > 1:
            raise ValueError(f"a predicted cell runs on no device; devices = {self.devices} has to be measured")
        return self

    def canonical(self) -> str:
        """The spec as JSON with sorted keys; equal specs give equal text."""
        return canonical_json(self._identity())

    def _identity(self) -> dict[str, Any]:
        """The fields that are hashed: cells from before there was ``devices`` keep their hashes."""
        fields = self.model_dump(mode="json")
        if self.devices == 1:
            del fields["devices"]
        return fields

    @property
    def hash(self) -> str:
        """Sixteen hex digits of SHA-256 over :meth:`canonical`."""
        return digest(self.canonical())

    @property
    def device_label(self) -> str:
        """The device, and how many of it where there are several: ``2 x cuda``."""
        return self.device if self.devices == 1 else f"{self.devices} x {self.device}"

    def group(self, *without: str) -> str:
        """Hash of the spec less the named fields: cells that differ only there share it."""
        spec = self._identity()
        for key in without:
            spec.pop(key, None)
        return digest(canonical_json(spec))

    def label(self) -> str:
        """One line for progress and messages."""
        seed = f" seed={self.seed}" if "train" in self.phases else ""
        kind = "predict" if self.predicted else "+".join(self.phases)
        shared = f" on {self.devices} devices" if self.devices > 1 else ""
        size = f"T={self.T} N={self.batch}{shared}{seed}"
        return f"{self.method.label} | {self.model.label} | {self.data.label} | {size} | {kind}"


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces.

    Raises:
        ValueError: the value holds NaN or infinity, which JSON has no word for.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(text: str) -> str:
    """Sixteen hex digits of SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
