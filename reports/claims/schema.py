"""What a file of claims may hold: one paper, its settings by name, its claims."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

Metric = Literal[
    "peak_memory", "activation_share", "memory_ratio", "memory_less", "speed_ratio", "throughput", "step_time",
    "plan_time", "epoch_time", "training_time", "time_saving", "accuracy", "accuracy_difference", "node_memory_less",
    "flops_saving",
]  # fmt: skip
"""``memory_ratio``: method's peak / baseline's; ``memory_less``: the inverse; ``speed_ratio``: method's samples per
second / baseline's; ``..._saving``: one less the ratio; ``activation_share``: activations / peak;
``node_memory_less``: bytes that the baseline's forward keeps for the backward / the method's;
``accuracy_difference``: method's less baseline's."""
Unit = Literal["MB", "MiB", "unknown", "GB", "GiB", "unknown (giga)", "ratio", "fraction", "%", "pp", "samples/s",
               "ms", "s", "h"]  # fmt: skip
"""``unknown``: the source writes MB, or nothing, and may mean 10**6 or 2**20 bytes; ``unknown (giga)``: the same of
10**9 and 2**30."""
BYTE_UNITS: dict[str, dict[str, int]] = {
    "MB": {"MB": 10**6},
    "MiB": {"MiB": 2**20},
    "unknown": {"MB": 10**6, "MiB": 2**20},
    "GB": {"GB": 10**9},
    "GiB": {"GiB": 2**30},
    "unknown (giga)": {"GB": 10**9, "GiB": 2**30},
}
"""Bytes of each reading of a unit."""
UNITS_OF: dict[str, tuple[str, ...]] = {
    "peak_memory": tuple(BYTE_UNITS),
    "activation_share": ("fraction", "%"),
    "memory_ratio": ("fraction", "%"),
    "memory_less": ("ratio",),
    "speed_ratio": ("fraction", "%"),
    "throughput": ("samples/s",),
    "step_time": ("ms",),
    "plan_time": ("s",),
    "epoch_time": ("s",),
    "training_time": ("h",),
    "time_saving": ("fraction", "%"),
    "accuracy": ("%",),
    "accuracy_difference": ("pp",),
    "node_memory_less": ("ratio",),
    "flops_saving": ("fraction", "%"),
}
"""Units that a metric may have."""
RATIOS = ("memory_ratio", "memory_less", "speed_ratio", "time_saving", "accuracy_difference", "node_memory_less",
          "flops_saving")  # fmt: skip
"""Metrics that need a baseline."""


class Table(BaseModel):
    """Base of all tables: unknown keys are refused, types are strict."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Plugin(BaseModel):
    """``"name"`` or ``{name = "...", option = value}``; an option that is not given may have any value."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The given options."""
        return dict(self.model_extra or {})

    @property
    def label(self) -> str:
        """Name and given options in one line."""
        inside = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}({inside})" if inside else self.name


def _as_table(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Named = Annotated[Plugin, BeforeValidator(_as_table)]


class Input(Table):
    """The data set by name, and the shape of one time step of one sample."""

    name: str
    sample: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    classes: PositiveInt | None = None


class Setting(Table):
    """Conditions that several claims share; what is left out is unknown and matches anything."""

    model: Named | None = None
    without: list[str] = []
    """Options of the model that are off: null or absent (TOML has no null)."""
    data: Input | None = None
    T: PositiveInt | None = None
    batch: PositiveInt | None = None
    precision: Annotated[list[Literal["fp32", "tf32", "amp-bf16", "amp-fp16"]], BeforeValidator(_as_list)] | None = None
    device: str | None = None
    """The device that the source measured on, where it says so."""


class Paper(Table):
    """The paper, and where the figures come from."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    title: str
    source: str


class ClaimEntry(Table):
    """One figure.

    ``bound``: ``about`` (the value itself), ``up_to`` (the best cell reaches it), ``at_least`` (the worst cell does).
    ``tolerance``: relative, of ``accuracy_difference`` in percentage points.
    ``memory``: which bytes the source counts. ``kernel``: which neuron implementation the figure was measured with.
    """

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    claim: str
    provenance: Literal["abstract", "figure", "notes", "tutorial"]
    setting: str | None = None
    method: Named
    baseline: Named | None = None
    metric: Metric
    value: float
    unit: Unit
    bound: Literal["about", "up_to", "at_least"] = "about"
    memory: Literal["allocated", "reserved", "unknown"] = "unknown"
    kernel: Literal["SJLIF", "PTLIF", "MELIF", "CuPy", "Triton", "unknown"] = "unknown"
    tolerance: Annotated[float, Field(gt=0, le=1)] = 0.1
    not_comparable: str | None = None
    note: str = ""

    @model_validator(mode="after")
    def _fits(self) -> ClaimEntry:
        if self.unit not in UNITS_OF[self.metric]:
            allowed = ", ".join(UNITS_OF[self.metric])
            raise ValueError(f"unit {self.unit!r} does not fit the metric {self.metric}. Allowed: {allowed}")
        if (self.metric in RATIOS) != (self.baseline is not None):
            word = "needs" if self.baseline is None else "takes no"
            raise ValueError(f"the metric {self.metric} {word} baseline")
        return self


class ClaimFile(Table):
    """The whole file."""

    paper: Paper
    settings: dict[str, Setting] = {}
    claim: Annotated[list[ClaimEntry], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> ClaimFile:
        seen: dict[str, int] = {}
        for index, entry in enumerate(self.claim):
            if entry.id in seen:
                raise ValueError(f"claim[{index}].id: {entry.id!r} is claim[{seen[entry.id]}]'s id already")
            seen[entry.id] = index
            if entry.setting is not None and entry.setting not in self.settings:
                allowed = ", ".join(self.settings) or "(none)"
                raise ValueError(f"claim[{index}].setting: no setting {entry.setting!r}. Allowed: {allowed}")
        return self


METRICS: tuple[str, ...] = get_args(Metric)
