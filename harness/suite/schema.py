"""What a suite's TOML may hold, before plugins are asked about their options.

Every axis takes one value or a list. Types are strict: ``T = "4"`` is an error, not a four.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from harness.spec import Device, LossSpec, Phase, Precision, RecipeKeys

SUITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a suite may be called: it names a folder of the store."""

Item = TypeVar("Item")


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _as_table(key: str) -> BeforeValidator:
    """``"name"`` stands for ``{key = "name"}``."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


class Table(BaseModel):
    """Base of all tables: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PluginEntry(BaseModel):
    """``"name"`` or ``{name = "...", option = value}``: the plugin itself checks its options."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The given options."""
        return dict(self.model_extra or {})


Axis = Annotated[list[Item], BeforeValidator(_as_list), Field(min_length=1)]
Plugin = Annotated[PluginEntry, _as_table("name")]


class RecipeEntry(RecipeKeys):
    """``"name"`` of a recipe file, ``{name = "...", key = value}`` to change some of its keys, or keys alone."""

    name: str | None = None


RecipeTable = Annotated[RecipeEntry, _as_table("name")]
LossEntry = Annotated[LossSpec, _as_table("kind")]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


class Axes(Table):
    """The axes of a grid; None: not given here."""

    method: Axis[Plugin] | None = None
    model: Axis[Plugin] | None = None
    data: Axis[Plugin] | None = None
    T: Axis[Positive] | None = None
    batch: Axis[Positive] | None = None
    loss: Axis[LossEntry] | None = None
    precision: Axis[Precision] | None = None
    devices: Axis[Positive] | None = None
    seeds: Axis[Seed] | None = None
    phases: Axis[Phase] | None = None


class Defaults(Axes):
    """What every grid has unless it says otherwise."""

    recipe: RecipeTable = RecipeEntry()
    """Only the keys that are given count: see :func:`given`."""
    baseline: str | None = None
    """The method that ratios are taken against, instead of each method's own."""
    predicted: bool | None = None
    every_seed: bool | None = None
    """Measure (not only train) every seed; otherwise cells without training take the first seed only."""
    profiles: Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)] | None = None


class Grid(Defaults):
    """One block of cells: the product of its axes."""

    name: str


class Profile(Table):
    """Sizes and limits that a suite runs with.

    ``set`` replaces axes of every grid, ``recipe`` replaces keys of every recipe.
    """

    description: str = ""
    device: Device = "cpu"
    threads: Positive = 1
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    substitute: str | None = None
    """What is reduced against the published setting; shown wherever this profile's numbers are."""
    recipe: RecipeTable = RecipeEntry()
    set: Axes = Axes()


class Header(Table):
    """The ``[suite]`` table."""

    name: str
    title: str
    description: str = ""

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not SUITE_NAME.fullmatch(name):
            raise ValueError("allowed are letters, digits, '.', '_' and '-', a letter or digit first")
        return name


def given(recipe: RecipeEntry) -> dict[str, Any]:
    """The keys that a file gives, without the defaults and the name."""
    return recipe.model_dump(exclude_unset=True, exclude={"name"})


class SuiteFile(Table):
    """The whole file."""

    suite: Header
    profiles: Annotated[dict[str, Profile], Field(min_length=1)]
    defaults: Defaults = Defaults()
    grid: Annotated[list[Grid], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> SuiteFile:
        names = [grid.name for grid in self.grid]
        for index, grid in enumerate(self.grid):
            if grid.name in names[:index]:
                raise ValueError(f"grid[{index}].name: {grid.name!r} is grid[{names.index(grid.name)}]'s name already")
        return self
