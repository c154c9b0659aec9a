"""The identity of a cell: one measurement, described completely and hashed canonically.

The hash covers what is measured, never how it is run: no timeout, order, host, thread count or job count. A finished
cell is therefore found again whatever those were.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, NonNegativeInt, PositiveInt, field_validator

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


class LossSpec(_Frozen):
    """``per_step``: mean over t of L(o[t], y); ``time_mean``: L(mean o, y)."""

    kind: Literal["per_step", "time_mean"] = "per_step"
    criterion: Literal["cross_entropy", "mse"] = "cross_entropy"
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)


class Recipe(_Frozen):
    """How training updates the weights."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    epochs: PositiveInt = 1
    clip_grad_norm: float | None = Field(default=None, gt=0)


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

    def canonical(self) -> str:
        """The spec as JSON with sorted keys; equal specs give equal text."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def hash(self) -> str:
        """Sixteen hex digits of SHA-256 over :meth:`canonical`."""
        return digest(self.canonical())

    def group(self, *without: str) -> str:
        """Hash of the spec less the named fields: cells that differ only there share it."""
        spec = self.model_dump(mode="json")
        for key in without:
            del spec[key]
        return digest(canonical_json(spec))

    def label(self) -> str:
        """One line for progress and messages."""
        seed = f" seed={self.seed}" if "train" in self.phases else ""
        kind = "predict" if self.predicted else "+".join(self.phases)
        return (
            f"{self.method.label} | {self.model.label} | {self.data.label} | T={self.T} N={self.batch}{seed} | {kind}"
        )


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces.

    Raises:
        ValueError: the value holds NaN or infinity, which JSON has no word for.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(text: str) -> str:
    """Sixteen hex digits of SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
