"""Comparison groups: the records that may share a ratio, by DESIGN.md's rules.

A group holds cells that are equal but for method, seed and phases, in one normalisation mode and from one fingerprint
of code, environment and device. Predicted cells are groups of their own. Inside a group a row is one method with all
its seeds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.record import WORST_FIRST, Record, Status
from harness.spec import CellSpec, Recipe

Block = Literal["fidelity", "memory", "timing", "ops", "training"]
PHASE_OF: Mapping[Block, str] = {
    "fidelity": "fidelity", "memory": "memory", "timing": "time", "ops": "ops", "training": "train",
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A record and where it lies.

    Args:
        path: the record's JSON file.
        record: its content.
        stale: a newer fingerprint exists for the same machine.
    """

    path: Path
    record: Record
    stale: bool = False


@dataclass(frozen=True)
class Row:
    """One method in a group: its records over seeds and phases, lowest seed first."""

    items: tuple[Item, ...]

    @property
    def spec(self) -> CellSpec:
        """The spec of the first record; the row's others differ in seed and phases only."""
        return self.items[0].record.spec

    @property
    def status(self) -> Status:
        """The worst status among the row's records."""
        present = {item.record.status for item in self.items}
        return next(status for status in WORST_FIRST if status in present)

    @property
    def promises(self) -> dict[str, Any]:
        """The method's promises (gradient, model, numerics, paper, reconstruction) from the first record with any."""
        return next((item.record.method for item in self.items if item.record.method), {})

    def with_block(self, block: Block) -> dict[int, Item]:
        """The newest record of each seed that holds the block.

        Args:
            block: name of a record's field.
        """
        held = [item for item in self.items if getattr(item.record, block)]
        return {item.record.spec.seed: item for item in sorted(held, key=_seed_then_age)}

    def first(self, block: Block) -> Item | None:
        """The record of the lowest seed that holds the block."""
        held = self.with_block(block)
        return held[min(held)] if held else None

    def asks(self, block: Block) -> bool:
        """Whether a cell of the row was to measure the block."""
        return any(PHASE_OF[block] in item.record.spec.phases for item in self.items)

    def why_absent(self, block: Block) -> str:
        """Why no record of the row holds the block: how its phase ended, or that no cell asked for it."""
        phase = PHASE_OF[block]
        for item in self.items:
            for name in (phase, "build"):
                result = item.record.phases.get(name)
                if result is not None and result.status != "ok":
                    return f"{result.status} in {name}: {result.reason or 'no reason given'}"
        for item in self.items:
            if item.record.status != "ok" and phase in item.record.spec.phases:
                return f"{item.record.status} before {phase}"
        if not self.asks(block):
            return f"no cell of this row has the phase {phase}"
        return f"the phase {phase} ended well, but the record does not hold this"


@dataclass(frozen=True)
class Group:
    """Rows that may share ratios."""

    rows: tuple[Row, ...]
    normalisation: str | None

    @property
    def spec(self) -> CellSpec:
        """A spec of the group; all agree but for method, baseline, seed and phases."""
        return self.rows[0].spec

    @property
    def record(self) -> Record:
        """A record of the group, for what all share: data, fingerprint, provenance."""
        return self.rows[0].items[0].record

    @property
    def stale(self) -> bool:
        """Whether a newer fingerprint exists for the machine of these records."""
        return self.rows[0].items[0].stale

    def baseline(self, row: Row) -> Row | str:
        """The row that ``row``'s ratios are against, or the reason why there is none."""
        name = row.spec.baseline
        found = [other for other in self.rows if other.spec.method.name == name]
        if not found:
            return f"no record of the baseline {name} with everything else the same"
        if len(found) > 1:
            return f"{len(found)} variants of the baseline {name} here: no single one to compare with"
        return found[0]


def latest(items: Iterable[Item]) -> list[Item]:
    """The newest run of each cell under each fingerprint."""
    newest: dict[tuple[str, str], Item] = {}
    for item in sorted(items, key=_age):
        newest[item.record.cell, item.record.fingerprint] = item
    return list(newest.values())


def context(record: Record, *without: str) -> tuple[str, str]:
    """What cells must share to be compared: the spec less the named fields, and the fingerprint.

    Args:
        record: any record.
        without: further fields that may differ besides method, baseline, seed and phases.
    """
    return record.spec.group("method", "baseline", "seed", "phases", *without), record.fingerprint


def group(items: Sequence[Item]) -> list[Group]:
    """Sort records into groups and rows.

    A record that failed before its model was built has no normalisation mode; it joins the group that its spec names,
    where that is one, so that the failure is shown beside what it would have been compared with.

    Args:
        items: records of one suite, from :func:`latest`.
    """
    modes: dict[tuple[str, str], set[str]] = defaultdict(set)
    for item in items:
        if item.record.normalisation is not None:
            modes[context(item.record)].add(item.record.normalisation)
    grouped: dict[tuple[str, str, str | None], list[Item]] = defaultdict(list)
    for item in items:
        known = modes[context(item.record)]
        mode = item.record.normalisation or (next(iter(known)) if len(known) == 1 else None)
        grouped[*context(item.record), mode].append(item)
    groups = [Group(_rows(members), mode) for (_, _, mode), members in grouped.items()]
    return sorted(groups, key=_group_order)


def _rows(items: list[Item]) -> tuple[Row, ...]:
    by_method: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_method[item.record.spec.group("seed", "phases")].append(item)
    rows = [Row(tuple(sorted(members, key=_seed_then_age))) for members in by_method.values()]
    return tuple(sorted(rows, key=_row_order))


def _row_order(row: Row) -> tuple[bool, str]:
    """Baselines first, then by name."""
    return row.spec.method.name != row.spec.baseline, row.spec.method.label


def _group_order(group: Group) -> tuple[Any, ...]:
    spec = group.spec
    return (
        group.stale, spec.predicted, spec.profile, spec.device, spec.model.label, spec.data.label, spec.loss.kind,
        spec.precision, spec.T, spec.batch, spec.devices, group.normalisation or "", recipe_line(spec.recipe),
        group.record.fingerprint,
    )  # fmt: skip


def _age(item: Item) -> tuple[str, str]:
    return item.record.created, item.record.run_id


def _seed_then_age(item: Item) -> tuple[int, str, str]:
    return item.record.spec.seed, *_age(item)


def recipe_line(recipe: Recipe) -> str:
    """A recipe in one line, for headings."""
    parts = [f"{recipe.optimizer} lr={recipe.lr:g}"]
    parts += [f"momentum={recipe.momentum:g}"] if recipe.optimizer == "sgd" and recipe.momentum else []
    parts += [f"weight decay={recipe.weight_decay:g}"] if recipe.weight_decay else []
    ends = " at " + ", ".join(map(str, recipe.milestones)) + f" by {recipe.gamma:g}" if recipe.milestones else ""
    ends += f" to {recipe.min_lr:g}" if recipe.min_lr else ""
    parts += [f"{recipe.schedule} schedule{ends}"]
    parts += [f"warm-up {recipe.warmup_epochs} from {recipe.warmup_lr:g}"] if recipe.warmup_epochs else []
    parts += [f"{recipe.epochs} epoch{'s' if recipe.epochs > 1 else ''}"]
    parts += [f"clip={recipe.clip_grad_norm:g}"] if recipe.clip_grad_norm else []
    return ", ".join(parts)
