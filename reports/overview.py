"""The head of the page: what was measured and on what, how it ended, and what was left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from harness.record import STATUSES, Record
from reports.about import About
from reports.cells import Cell
from reports.collect import machine_line
from reports.groups import Item
from reports.labels import Kind, Labels
from reports.view import Grid, Head, number, text


@dataclass(frozen=True)
class Overview:
    """What the head says.

    Args:
        statuses: number of cells by status, worst last; zero ones left out.
        lines: a name and a sentence each.
        warnings: what a reader must know before the numbers (substitutes, stale records).
    """

    statuses: Sequence[tuple[str, int]]
    lines: list[tuple[str, str]]
    warnings: list[str]


def overview(items: Sequence[Item], superseded: int, about: About, labels: Labels) -> Overview:
    """Sum up a suite's records.

    Args:
        items: current and stale records.
        superseded: number of older runs that are not shown.
        about: the suite's own description.
        labels: short names.
    """
    counts = Counter(item.record.status for item in items)
    statuses = [(status, counts[status]) for status in STATUSES if counts[status]]
    return Overview(statuses, list(_lines(items, superseded, about, labels)), _warnings(items, about, labels))


def _lines(items: Sequence[Item], superseded: int, about: About, labels: Labels) -> Iterator[tuple[str, str]]:
    records = [item.record for item in items]
    predicted = sum(record.spec.predicted for record in records)
    older = f"; {superseded} older run(s) of the same cells not shown" if superseded else ""
    yield "cells", f"{len(records)}: {len(records) - predicted} run, {predicted} predicted without running{older}"
    yield "predicted", _profiles(record for record in records if record.spec.predicted)
    yield "measured", _profiles(record for record in records if not record.spec.predicted)
    plurals: tuple[tuple[str, Kind], ...] = (("methods", "method"), ("models", "model"), ("data", "data"))
    for name, kind in plurals:
        values = sorted({labels.short(kind, getattr(record.spec, kind)) for record in records})
        yield name, ", ".join(values)
    for name, axis in (("T", "T"), ("batch", "batch"), ("seeds", "seed"), ("precision", "precision")):
        yield name, ", ".join(str(v) for v in sorted({getattr(record.spec, axis) for record in records}))
    left_out = Counter(status for record in records if (status := record.status) in ("unsupported", "unavailable"))
    said = [f"{count} cell(s) {status}" for status, count in sorted(left_out.items())]
    nulls = {null for record in records for null in _nulls(record)}
    said += (
        [f"{len({what for what, _ in nulls})} metric(s) null in some record, with their reasons below"] if nulls else []
    )
    absent = [name for name in about.profiles if name not in {record.spec.profile for record in records}]
    said += [f"profile(s) {', '.join(absent)} of the suite: not run"] if absent else []
    yield "left out", "; ".join(said) or "nothing"
    machines = Counter(machine_line(record) for record in records if not record.spec.predicted)
    yield "measured on", "; ".join(machines) or "nothing: all cells are predictions"
    created = sorted(record.created for record in records)
    yield "between", f"{created[0]} and {created[-1]}"


def _profiles(records: Iterable[Record]) -> str:
    """How many records each profile gave, and on which kind of device."""
    counts = Counter((r.spec.profile, "no device" if r.spec.predicted else r.spec.device) for r in records)
    return ", ".join(f"{count} in profile {name} ({where})" for (name, where), count in counts.items()) or "nothing"


def _warnings(items: Sequence[Item], about: About, labels: Labels) -> list[str]:
    found = [f"Profile {name} is a substitute: {what}" for name, what in about.substitutes.items()
             if any(item.record.spec.profile == name for item in items)]  # fmt: skip
    stale = sum(item.stale for item in items)
    if stale:
        found.append(
            f"{stale} record(s) are stale: code or environment has changed since. They are shown apart at the end of "
            "the tables, and left out of the figures."
        )
    synthetic = sum(bool(item.record.data.get("synthetic")) for item in items)
    if synthetic:
        found.append(f"{synthetic} record(s) were measured on synthetic input in place of their data set.")
    changed = sum(item.record.provenance.get("suite_sha256") not in (None, about.sha256) for item in items)
    if changed and about.sha256:
        found.append(f"The suite's file has changed since {changed} of the records were made.")
    return found + list(_variants((item.record for item in items), labels))


def _variants(records: Iterable[Record], labels: Labels) -> Iterator[str]:
    """Data that are not the published ones, those with the same reason in one sentence."""
    reasons: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if variant := record.data.get("variant"):
            reasons[str(variant)].add(labels.short("data", record.spec.data))
    for variant, names in sorted(reasons.items(), key=lambda pair: sorted(pair[1])):
        yield f"Data {', '.join(sorted(names))}: {variant}."


def method_list(items: Sequence[Item], labels: Labels) -> Grid:
    """The methods of the page with their options and promises.

    Args:
        items: all records.
        labels: short names.
    """
    first: dict[str, Record] = {}
    for item in items:
        label = labels.method(item.record.spec)
        if label not in first or (item.record.method and not first[label].method):
            first[label] = item.record
    heads = [Head("method"), Head("full name"), Head("ratios against"), Head("gradient"), Head("model"),
             Head("numerics"), Head("paper")]  # fmt: skip
    rows = []
    for label in labels.methods:
        record = first[label]
        promises = [text(record.method.get(name), "no record names it") for name in ("gradient", "model", "numerics")]
        paper = text(record.method.get("paper"), "no record names it")
        if record.method.get("reconstruction"):
            why = "our reading of the paper: its own equations are not available"
            paper = Cell(paper.value, paper.text, why, marks={"reconstruction": why})
        rows.append([text(label), text(record.spec.method.label), text(record.spec.baseline), *promises, paper])
    return Grid("methods", heads, rows)


def omissions(items: Sequence[Item]) -> Grid:
    """Every metric that was null, with its reason and in how many records.

    Args:
        items: all records.
    """
    counts: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], Item] = {}
    for item in items:
        for what, why in _nulls(item.record):
            counts[what, why] += 1
            example.setdefault((what, why), item)
    heads = [Head("not measured"), Head("reason"), Head("records", numeric=True)]
    rows = [[text(what), text(why), number(count, f"{count}", item=example[what, why])]
            for (what, why), count in sorted(counts.items())]  # fmt: skip
    return Grid("omissions", heads, rows)


def _nulls(record: Record) -> Iterator[tuple[str, str]]:
    blocks: dict[str, Sequence[BaseModel | None]] = {
        "fidelity": record.fidelity, "memory": [record.memory], "time": [record.timing], "ops": [record.ops],
        "train": [record.training],
    }  # fmt: skip
    for phase, held in blocks.items():
        present = [block for block in held if block is not None]
        nulls = {(f"{phase}: {name}", why) for block in present for name, why in _blank(block)}
        yield from sorted(nulls)


def _blank(block: BaseModel) -> list[tuple[str, str]]:
    reasons: dict[str, str] = getattr(block, "reasons", {})
    return [(name, why) for name, why in reasons.items() if name in dict(block) and getattr(block, name) is None]
