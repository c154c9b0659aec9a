"""Provenance: the environments behind the records, side by side, and the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reports.cells import Cell, absent
from reports.groups import Item
from reports.view import Grid, Head, number, text

PER_RUN = ("load_average", "seed", "data_sha256", "suite_sha256")
"""Facts that change from run to run of one environment; the records have them."""


def environments(items: Sequence[Item], letters: Mapping[str, str]) -> Grid:
    """One column for each fingerprint; a mark where they differ.

    Args:
        items: all records.
        letters: the name of each fingerprint on the page.
    """
    newest: dict[str, Item] = {}
    for item in sorted(items, key=lambda i: i.record.created):
        newest[item.record.fingerprint] = item
    provenances = {key: newest[key].record.provenance for key in letters}
    facts = {key: dict(_flat(found, found.get("reasons", {}))) for key, found in provenances.items()}
    counts = {key: sum(item.record.fingerprint == key for item in items) for key in letters}
    names = list(dict.fromkeys(name for flat in facts.values() for name in flat))
    heads = [Head("")] + [Head(f"environment {letter}") for letter in letters.values()]
    rows = [[text("fingerprint")] + [Cell(key, key, item=newest[key]) for key in letters]]
    rows.append([text("records")] + [number(counts[key], str(counts[key])) for key in letters])
    rows += [
        _row(name, [facts[key].get(name, absent("this environment names none")) for key in letters]) for name in names
    ]
    return Grid("environments", heads, rows)


def _row(name: str, cells: list[Cell]) -> list[Cell]:
    differ = len({cell.text for cell in cells}) > 1
    return [Cell(name, name, marks={"differs": "not the same in all environments"} if differ else {}), *cells]


def _flat(facts: Mapping[str, Any], reasons: Mapping[str, str], prefix: str = "") -> Iterator[tuple[str, Cell]]:
    """Nested facts as dotted names; a null takes its reason from the provenance's ``reasons``."""
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if name in PER_RUN or name == "reasons":
            continue
        if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
            yield from _flat({str(i): part for i, part in enumerate(value)}, reasons, f"{name}.")
        elif isinstance(value, Mapping):
            yield from _flat(value, reasons, f"{name}.")
        elif value is None:
            why = next(
                (reasons[n] for n in (name, key, name.split(".")[0]) if n in reasons), "the record does not say why"
            )
            yield name, absent(why)
        else:
            yield name, text(", ".join(map(str, value)) if isinstance(value, list) else value)


def data_sets(items: Sequence[Item]) -> Grid:
    """The data behind the records, by label and content.

    Args:
        items: all records.
    """
    seen: dict[tuple[str, str, int], Item] = {}
    real = {item.record.spec.data.label for item in items if not item.record.spec.predicted}
    for item in items:
        spec = item.record.spec
        if item.record.data and not (spec.predicted and spec.data.label in real):
            seen.setdefault((spec.data.label, str(item.record.data.get("sha256")), spec.T), item)
    heads = [Head("data"), Head("T", numeric=True), Head("source"), Head("sample"), Head("classes", numeric=True),
             Head("input"), Head("SHA-256"), Head("variant")]  # fmt: skip
    return Grid("data", heads, [_data_row(item) for item in seen.values()])


def _data_row(item: Item) -> list[Cell]:
    facts, spec = item.record.data, item.record.spec
    sample = facts.get("sample")
    shape = "\u00d7".join(map(str, sample)) if isinstance(sample, list) else None
    classes = facts.get("classes")
    kind = "fake tensors" if spec.predicted else "synthetic" if facts.get("synthetic") else "real"
    why = "a prediction reads no data" if spec.predicted else str(facts.get("reason", "not in the record"))
    return [
        text(spec.data.label, item=item), number(spec.T, str(spec.T)), text(facts.get("source"), "not in the record"),
        text(shape, "not in the record"), number(classes, str(classes), "not in the record"), text(kind),
        text(facts.get("sha256"), why), text(facts.get("variant"), "the published data"),
    ]  # fmt: skip
