"""From a suite's grids to cells: defaults, the profile's overrides, plugins' options, the product of the axes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import ValidationError

from harness import registry
from harness.contracts import Method, Unavailable
from harness.errors import UsageError
from harness.spec import CellSpec, LossSpec, Ref
from harness.suite import recipes
from harness.suite.schema import Axes, Defaults, Grid, PluginEntry, Profile, RecipeEntry, SuiteFile, given
from harness.suite.selection import Candidate
from harness.validation import usage_error

REQUIRED = ("method", "model", "data", "T", "batch", "phases")
FALLBACK: dict[str, list[Any]] = {"loss": [LossSpec()], "precision": ["fp32"], "devices": [1], "seeds": [0]}
PLUGINS = {"method": "methods", "model": "models", "data": "datasets"}
PREDICTABLE = ("memory",)
"""Phases that a cell without data and compute can have."""


class _Source(NamedTuple):
    """A table of the file and its key path."""

    place: str
    table: Axes


class _Expander:
    """One grid under one profile.

    Args:
        file: what errors call the suite's file.
        content: the suite.
        index: position of the grid.
        profile: name of the profile.
    """

    def __init__(self, file: str, content: SuiteFile, index: int, profile: str) -> None:
        self.file = file
        self.place = f"grid[{index}]"
        self.grid: Grid = content.grid[index]
        self.defaults: Defaults = content.defaults
        self.name = profile
        self.profile: Profile = content.profiles[profile]
        self.sources = [
            _Source(f"profiles.{profile}.set", self.profile.set),
            _Source(self.place, self.grid),
            _Source("defaults", self.defaults),
        ]
        self.recipes: list[tuple[str, RecipeEntry]] = [
            (f"profiles.{profile}.recipe", self.profile.recipe),
            (f"{self.place}.recipe", self.grid.recipe),
            ("defaults.recipe", self.defaults.recipe),
        ]
        self.predicted = bool(self._own("predicted"))
        self.every_seed = bool(self._own("every_seed"))
        self.baseline = self._baseline()

    def cells(self) -> Iterator[CellSpec]:
        """Every combination, in the file's order: the first axis varies slowest."""
        axes = {name: self._axis(name) for name in (*REQUIRED[:-1], *FALLBACK)}
        axes["seeds"] = self._seeds(axes["seeds"])
        for values in itertools.product(*axes.values()):
            yield self._cell(dict(zip(axes, values, strict=True)))

    def _cell(self, value: dict[str, Any]) -> CellSpec:
        recipe = self._recipe()
        method: Ref = value["method"]
        fields = {
            **{key: value[key] for key in ("method", "model", "data", "T", "batch", "loss", "precision", "devices")},
            "baseline": self.baseline or _baseline_of(method.name),
            "recipe": recipe,
            "device": self.profile.device,
            "seed": value["seeds"],
            "profile": self.name,
            "phases": self._phases(),
            "predicted": self.predicted,
        }
        try:
            spec = CellSpec.model_validate(fields)
            spec.canonical()
        except ValidationError as error:
            raise usage_error(error, CellSpec, f"{self.file}: {self.place}", joint=".") from None
        except ValueError as error:
            raise UsageError(
                f"{self.file}: {self.place}.recipe: {recipe}: {error}; numbers have to be finite"
            ) from None
        return spec

    def _recipe(self) -> dict[str, Any]:
        """The keys of all tables, from the last source to the first; a named recipe takes the place of those below."""
        keys: dict[str, Any] = {}
        for place, table in reversed(self.recipes):
            if table.name is not None:
                keys = given(recipes.load(table.name, self._where(place)).recipe)
            keys = keys | given(table)
        return keys

    def _named_loss(self, upto: int) -> list[LossSpec] | None:
        """The loss of the recipe that the first ``upto`` sources name."""
        for place, table in self.recipes[:upto]:
            if table.name is not None:
                loss = recipes.load(table.name, self._where(place)).loss
                return None if loss is None else [loss]
        return None

    def _losses(self) -> list[LossSpec]:
        """What the profile or the grid says, else their recipe, else what the defaults say, else their recipe."""
        own, general = self.sources[:2], self.sources[2:]
        found = self._find("loss", own)
        if found is None and (named := self._named_loss(2)) is not None:
            return named
        found = found or self._find("loss", general)
        if found is None and (named := self._named_loss(3)) is not None:
            return named
        return FALLBACK["loss"] if found is None else found[1]

    def _where(self, place: str) -> str:
        return f"{self.file}: {place}"

    def _axis(self, name: str) -> list[Any]:
        if name == "loss":
            return self._losses()
        found = self._find(name, self.sources)
        if found is None:
            if name in FALLBACK:
                return FALLBACK[name]
            raise UsageError(f"{self.file}: {self.place}.{name}: missing; give it in this grid or in [defaults]")
        place, values = found
        if name in PLUGINS:
            return [self._ref(PLUGINS[name], entry, f"{place}[{i}]") for i, entry in enumerate(values)]
        return values

    def _find(self, name: str, sources: list[_Source]) -> tuple[str, list[Any]] | None:
        for place, table in sources:
            values = getattr(table, name)
            if values is not None:
                return f"{place}.{name}", values
        return None

    def _ref(self, kind: str, entry: PluginEntry, place: str) -> Ref:
        where = f"{self.file}: {place}"
        try:
            return registry.complete(kind, entry.name, entry.options, where)
        except Unavailable:
            # The cell stays: its worker records it as unavailable, with the reason.
            return registry.reference(entry.name, entry.options, where)

    def _phases(self) -> tuple[str, ...]:
        if self.predicted:
            if self.grid.phases is not None and tuple(self.grid.phases) != PREDICTABLE:
                place = f"{self.file}: {self.place}.phases"
                raise UsageError(
                    f"{place}: {self.grid.phases}: a predicted grid runs nothing. Allowed: {list(PREDICTABLE)}"
                )
            return PREDICTABLE
        return tuple(self._axis("phases"))

    def _seeds(self, seeds: list[int]) -> list[int]:
        """All of them where the cell trains or the grid asks for it, else the first: bytes and time need one."""
        return seeds if "train" in self._phases() or self.every_seed else seeds[:1]

    def _baseline(self) -> str | None:
        """The baseline that the file gives, None where each method's own holds."""
        name: str | None = self._own("baseline")
        if name is not None:
            place = self.place if self.grid.baseline is not None else "defaults"
            with contextlib.suppress(Unavailable):  # as for a method: its worker records the reason
                registry.plugin("methods", name, f"{self.file}: {place}.baseline")
        return name

    def _own(self, name: str) -> Any:
        """What the grid says, else what the defaults say."""
        own = getattr(self.grid, name)
        return own if own is not None else getattr(self.defaults, name)


def candidates(file: str, content: SuiteFile, profile: str) -> list[Candidate]:
    """All cells of a profile with the grid that asks for each, in the file's order; a cell may come more than once.

    Raises:
        UsageError: whatever is wrong with a grid, or two settings share a label, or the profile has no grid.
    """
    found = [
        Candidate(grid.name, spec)
        for index, grid in enumerate(content.grid)
        if _in_profile(grid, content.defaults, profile)
        for spec in _Expander(file, content, index, profile).cells()
    ]
    if not found:
        raise UsageError(f"{file}: profile {profile!r} has no grid: every grid's 'profiles' leaves it out")
    _check_labels(file, found)
    return found


def _in_profile(grid: Grid, defaults: Defaults, profile: str) -> bool:
    names = grid.profiles if grid.profiles is not None else defaults.profiles
    return names is None or profile in names


def _baseline_of(method: str) -> str:
    found = registry.entries("methods")[method].plugin
    return Method.baseline if found is None else found.baseline


def _check_labels(file: str, found: list[Candidate]) -> None:
    """Tables and figures tell settings apart by label: two settings with one label would be taken for one."""
    known: dict[tuple[str, str], Ref] = {}
    for candidate in found:
        for axis in PLUGINS:
            ref: Ref = getattr(candidate.spec, axis)
            other = known.setdefault((axis, ref.label), ref)
            if other != ref:
                pair = f"{other.name} with {other.options} and {ref.name} with {ref.options}"
                raise UsageError(f"{file}: two settings of {axis} share the label {ref.label!r}: {pair}")
