"""The verdict on a claim, for predictions and for measurements separately; docs/claims.md states the rule.

A claim is judged on cells with its conditions only. What a reduced cell, another device or a substitute gives is
``not comparable``, whatever the number; what nobody ran is ``not run``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from statistics import fmean
from typing import Literal

from reports.claims.loading import Claim
from reports.claims.matching import Cells, Match
from reports.claims.values import TIMES, TRAINED, AbsentError, value
from reports.collect import machine_line
from reports.groups import Item

Word = Literal["reproduced", "differs", "not reproduced", "not comparable", "not run"]
WORDS: tuple[Word, ...] = ("reproduced", "differs", "not reproduced", "not comparable", "not run")
FAR = 0.5
"""A value that lies further off than this fraction is no reproduction at all (our choice)."""
LOWER_IS_BETTER = ("memory_ratio", "peak_memory", "step_time", "plan_time", "epoch_time", "training_time")
ABSOLUTE_TIMES = ("throughput", "step_time", "plan_time", "epoch_time", "training_time")
GROUPS = {"method": "snnbench.methods", "model": "snnbench.models"}

Substitutes = Mapping[tuple[str, str], str]
"""What a profile reduces, by suite and profile."""


@dataclass(frozen=True)
class Side:
    """What predictions, or measurements, say of a claim.

    Args:
        word: the verdict.
        why: the rest of it: by how much, or why not.
        value: ours, in the store's unit; None where there is none, or many.
        ratios: ours / published, by reading of the published unit.
        match: the cell behind the value.
        where: the device of a measurement, or that nothing ran.
        span: least and greatest value of ``cells`` cells, where what is published could belong to any of them.
        cells: how many.
    """

    word: Word
    why: str
    value: float | None = None
    ratios: Mapping[str, float] | None = None
    match: Match | None = None
    where: str = ""
    span: tuple[float, float] | None = None
    cells: int = 1

    @property
    def text(self) -> str:
        """The verdict in one line."""
        if self.word == "differs":
            return f"differs by {self.why}"
        return f"{self.word}: {self.why}" if self.why else self.word


@dataclass(frozen=True)
class Judged:
    """A claim with both verdicts."""

    claim: Claim
    predicted: Side
    measured: Side


def judge(claims: Sequence[Claim], items: Sequence[Item], substitutes: Substitutes) -> list[Judged]:
    """A verdict on every claim.

    Args:
        claims: what the papers say.
        items: records of any suites.
        substitutes: what profiles reduce against the published settings.
    """
    guesses = Cells(item for item in items if item.record.spec.predicted)
    real = Cells(item for item in items if not item.record.spec.predicted)
    return [
        Judged(claim, _side(claim, guesses, substitutes, True), _side(claim, real, substitutes, False))
        for claim in claims
    ]


def _side(claim: Claim, cells: Cells, substitutes: Substitutes, predicted: bool) -> Side:
    missing = _not_here(claim)
    if missing:
        return Side("not run", missing)
    if predicted and claim.entry.metric in (*TIMES, *TRAINED, "flops_saving"):
        return Side("not run", "a prediction runs nothing: only a measurement can tell")
    found = list(cells.matches(claim))
    full = [match for match in found if not match.differences]
    if not full:
        return _without(claim, found, predicted)
    values, reasons = _values(claim, full)
    if not values:
        return Side(
            "not comparable" if claim.entry.not_comparable else "not run", claim.entry.not_comparable or reasons
        )
    return _verdict(claim, values, substitutes)


def _not_here(claim: Claim) -> str:
    """Which plugin of the claim is not installed."""
    wanted = {"method": [claim.entry.method, claim.entry.baseline], "model": [claim.setting.model]}
    for kind, plugins in wanted.items():
        names = {point.name for point in metadata.entry_points(group=GROUPS[kind])}
        for plugin in plugins:
            if plugin is not None and plugin.name not in names:
                return f"no {kind} called {plugin.name} is installed"
    return ""


def _without(claim: Claim, found: Sequence[Match], predicted: bool) -> Side:
    """No cell has the conditions: say what was looked at in their place, if anything was."""
    if claim.entry.not_comparable:
        return Side("not comparable", claim.entry.not_comparable)
    model = claim.setting.model
    near = [m for m in found if model is None or m.item.record.spec.model.name == model.name]
    if not near or predicted:
        kind = "predicted" if predicted else "measured"
        return Side("not run", f"no cell with these conditions was {kind}")
    match = min(near, key=lambda m: (len(m.differences), m.item.record.spec.label()))
    return Side("not comparable", f"reduced: {'; '.join(match.differences)}", match=match, where=_where(match))


def _values(claim: Claim, full: Sequence[Match]) -> tuple[list[tuple[float, Match]], str]:
    """What each cell says, the oldest first; and why the others say nothing."""
    values: list[tuple[float, Match]] = []
    reason = ""
    for match in sorted(full, key=lambda m: (m.item.record.created, m.item.record.run_id)):
        try:
            values.append((value(claim, match), match))
        except AbsentError as error:
            reason = str(error)
    return values, reason


def _verdict(claim: Claim, values: Sequence[tuple[float, Match]], substitutes: Substitutes) -> Side:
    """The newest cell is judged, by the mean of its seeds; the best under ``up_to``, the worst under ``at_least``."""
    ours, match = values[-1]
    seeds = _seeds(values)
    if claim.entry.metric in TRAINED:
        ours = fmean(seeds)
    if claim.entry.bound != "about":
        least = (claim.entry.bound == "up_to") == (claim.entry.metric in LOWER_IS_BETTER)
        ours, match = (min if least else max)(values, key=lambda pair: pair[0])
    reason = _incomparable(claim, match, substitutes)
    ends = min(value for value, _ in values), max(value for value, _ in values)
    if claim.entry.not_comparable and claim.entry.bound == "about" and ends[0] < ends[1]:
        return Side("not comparable", reason, None, None, match, _where(match), ends, len(values))
    ratios = {name: ours / published for name, published in claim.readings.items() if published}
    if reason:
        return Side("not comparable", reason, ours, ratios, match, _where(match))
    word, why = compare(claim, ours)
    if claim.entry.metric in TRAINED and claim.entry.bound == "about" and len(seeds) > 1:
        why += f" (mean of {len(seeds)} seeds)"
    if claim.entry.bound != "about" and len(values) > 1:
        spec = match.item.record.spec
        rank = "best" if claim.entry.bound == "up_to" else "worst"
        why += f" ({rank} of {len(values)} cells: {spec.model.name}, T = {spec.T}, batch {spec.batch})"
    return Side(word, why, ours, ratios, match, _where(match))


def _seeds(values: Sequence[tuple[float, Match]]) -> list[float]:
    """The newest value of each seed of the newest cell."""
    wanted = values[-1][1].item.record.spec.model_copy(update={"seed": 0})
    found = {}
    for number, match in values:
        spec = match.item.record.spec
        if spec.model_copy(update={"seed": 0}) == wanted:
            found[spec.seed] = number
    return list(found.values())


def compare(claim: Claim, ours: float) -> tuple[Word, str]:
    """The verdict on a value that may be compared.

    A unit that is unknown is read both ways, and the less favourable verdict is the claim's.

    Args:
        claim: what is published.
        ours: in the store's unit.
    """
    if claim.entry.metric == "accuracy_difference":
        return _compare_points(claim, ours)
    found = [(*_compare_to(claim, ours, published), name) for name, published in claim.readings.items()]
    if len(found) == 1:
        return found[0][:2]
    found.sort(key=lambda each: -WORDS.index(each[0]))
    (word, said, name), (other_word, other_said, other) = found
    if word == other_word:
        return word, f"{said} read as {name}, {other_said} as {other}"
    return word, f"{said} read as {name} (as {other} {other_said}: {other_word})"


def _compare_to(claim: Claim, ours: float, published: float) -> tuple[Word, str]:
    entry, deviation = claim.entry, ours / published - 1
    said = f"{100 * deviation:+.1f} %"
    worse = deviation if entry.metric in LOWER_IS_BETTER else -deviation
    if (abs(deviation) if entry.bound == "about" else worse) <= entry.tolerance:
        return "reproduced", said
    if _gain_lost(entry.metric, published, ours):
        return "not reproduced", f"{said}; there is no gain"
    if abs(deviation) > FAR:
        return "not reproduced", said
    return "differs", said


def _compare_points(claim: Claim, ours: float) -> tuple[Word, str]:
    points = 100 * ours - claim.entry.value
    kept = abs(points) if claim.entry.bound == "about" else -points
    said = f"{points:+.2f} percentage points".replace("-", "\u2212")
    return ("reproduced" if kept <= claim.entry.tolerance else "not reproduced"), said


def _gain_lost(metric: str, published: float, ours: float) -> bool:
    """Whether a method is claimed to save something and saves nothing."""
    if metric == "memory_ratio":
        return published < 1 <= ours
    if metric in ("memory_less", "node_memory_less"):
        return published > 1 >= ours
    return metric in ("time_saving", "flops_saving") and published > 0 >= ours


def _incomparable(claim: Claim, match: Match, substitutes: Substitutes) -> str:
    """Why a cell with the claim's conditions still cannot be compared with it; empty where it can."""
    entry, record = claim.entry, match.item.record
    if entry.not_comparable:
        return entry.not_comparable
    unknown = [name for name in ("T", "batch") if getattr(claim.setting, name) is None]
    if unknown and entry.metric in ("peak_memory", *ABSOLUTE_TIMES[:2]):
        return f"the source does not give {' and '.join(unknown)}"
    if entry.metric == "peak_memory" and entry.memory == "reserved" and record.spec.device != "cuda":
        return "the figure is reserved memory, the ledger counts live bytes"
    if not record.spec.predicted and (what := substitutes.get((record.suite, record.spec.profile))):
        return f"reduced: {what}"
    if entry.metric in TRAINED:
        if record.data.get("synthetic"):
            return "synthetic input"
        if record.data.get("variant"):
            return f"variant of the data: {record.data['variant']}"
    if entry.metric in TIMES and record.spec.device != "cuda":
        return "timed on a CPU, published on a GPU"
    if entry.metric in ABSOLUTE_TIMES and not _same_device(claim, match):
        return f"another device: published on {claim.setting.device or 'an unnamed one'}"
    return ""


def _same_device(claim: Claim, match: Match) -> bool:
    return claim.setting.device is not None and claim.setting.device in machine_line(match.item.record)


def _where(match: Match) -> str:
    record = match.item.record
    if record.spec.predicted:
        return "predicted"
    return machine_line(record)
