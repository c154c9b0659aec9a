"""The claims beside our numbers: for the page, the terminal, CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence

from reports.cells import DASH, MIB, Cell, absent
from reports.claims.judge import WORDS, Judged, Side
from reports.claims.loading import Claim
from reports.claims.schema import BYTE_UNITS
from reports.view import Grid, Head

HEADS = (
    Head("paper"), Head("claim", "what the source says, and its id"), Head("from", "where the figure stands"),
    Head("published", "as the source writes it; an unknown unit in both readings"),
    Head("predicted", "under fake tensors, at the published size", numeric=True),
    Head("/ published", "ours / published, by reading of the unit", numeric=True), Head("verdict on the prediction"),
    Head("measured", "on the device named", numeric=True),
    Head("/ published", "ours / published, by reading of the unit", numeric=True),
    Head("verdict on the measurement"), Head("device"),
)  # fmt: skip
MEASURED = 7
"""The columns from here on are about measurements."""
UNMEASURED = "No cell of these claims was measured."
KERNEL = "* published with another neuron kernel than ours"
PLAIN = (
    "paper", "claim", "provenance", "published", "unit", "kernel", "predicted", "predicted_ratio", "predicted_verdict",
    "measured", "measured_ratio", "measured_verdict", "device",
)  # fmt: skip
"""Columns of the CSV: raw values in the store's units."""
FUSED = ("bptt-fused", "checkpoint-compress-fused")
"""Methods on our fused neuron, which is MELIF's idea: one tensor a layer is kept."""


def claim_grid(judged: Sequence[Judged]) -> Grid:
    """The table of the page.

    Args:
        judged: claims with their verdicts.
    """
    rows = [_row(each) for each in judged]
    if any_measured(judged):
        return Grid("claims", HEADS, rows, note=counts(judged))
    return Grid("claims", HEADS[:MEASURED], [row[:MEASURED] for row in rows], note=f"{counts(judged)} {UNMEASURED}")


def any_measured(judged: Sequence[Judged]) -> bool:
    """Whether a measured cell is about one of the claims, if only a reduced one."""
    return any(each.measured.match is not None for each in judged)


def counts(judged: Sequence[Judged]) -> str:
    """How many claims ended how, in one line."""
    parts = []
    for name, sides in (("predictions", [j.predicted for j in judged]), ("measurements", [j.measured for j in judged])):
        found = [(word, sum(side.word == word for side in sides)) for word in WORDS]
        parts.append(f"{name}: " + ", ".join(f"{count} {word}" for word, count in found if count))
    return f"{len(judged)} claims. " + "; ".join(parts) + "."


def _row(judged: Judged) -> list[Cell]:
    claim, entry = judged.claim, judged.claim.entry
    details = "; ".join(word for word in (conditions(claim), entry.note) if word)
    cells = [
        Cell(claim.paper.name, claim.paper.name, f"{claim.paper.title}. Source: {claim.paper.source}"),
        Cell(claim.id, entry.claim, f"{claim.id}: {details}"),
        Cell(entry.provenance, entry.provenance),
        Cell(entry.value, published(claim), f"tolerance {100 * entry.tolerance:g} %"),
    ]
    for side in (judged.predicted, judged.measured):
        cells += _side_cells(claim, side)
    where = judged.measured.where
    return [*cells, Cell(where, where) if where else absent(judged.measured.why)]


def _side_cells(claim: Claim, side: Side) -> list[Cell]:
    item = side.match.item if side.match else None
    marks = kernel_marks(claim, side)
    if side.span is not None:
        told = f"{side.cells} cells, from {side.span[0]:g} to {side.span[1]:g}"
        return [
            Cell(side.span[1], value_text(claim, side), told, marks=marks),
            absent(told),
            Cell(side.word, side.text),
        ]
    if side.value is None:
        return [absent(side.why, item), absent(side.why), Cell(side.word, side.text)]
    label = item.record.spec.label() if item else ""
    return [
        Cell(side.value, shown(claim, side.value), label, item, marks),
        Cell(next(iter((side.ratios or {}).values()), None), ratio_text(side), side.text),
        Cell(side.word, side.text),
    ]


def kernel_marks(claim: Claim, side: Side) -> dict[str, str]:
    """A mark where the figure was measured with a neuron kernel that is not the cell's."""
    kernel = claim.entry.kernel
    if kernel == "unknown" or side.match is None or side.match.item.record.memory is None:
        return {}
    ours = side.match.item.record.memory.kernel_path
    if kernel == "PTLIF" or (kernel == "MELIF" and claim.entry.method.name in FUSED):
        return {}
    return {"kernel": f"published with {kernel} neurons; ours: {ours}"}


def conditions(claim: Claim) -> str:
    """Method and setting in one line."""
    setting, entry = claim.setting, claim.entry
    parts = [entry.method.label + (f" against {entry.baseline.label}" if entry.baseline else "")]
    parts += [setting.model.label] if setting.model else []
    parts += [f"without {name}" for name in setting.without]
    if setting.data:
        sample = f" {'x'.join(map(str, setting.data.sample))}" if setting.data.sample else ""
        parts.append(setting.data.name + sample)
    parts += [f"{name} = {given}" for name in ("T", "batch") if (given := getattr(setting, name)) is not None]
    parts += [" or ".join(setting.precision)] if setting.precision else []
    parts += [f"{entry.kernel} neurons"] if entry.kernel != "unknown" else []
    parts += [f"{entry.memory} memory"] if entry.memory != "unknown" else []
    return ", ".join(parts)


def published(claim: Claim) -> str:
    """The figure with its unit; where that is unknown, what both readings are in MiB."""
    entry = claim.entry
    bound = {"about": "", "up_to": "up to ", "at_least": "at least "}[entry.bound]
    if entry.unit not in BYTE_UNITS:
        unit = {"ratio": "\u00d7", "fraction": ""}.get(entry.unit, f" {entry.unit}")
        return f"{bound}{entry.value:g}{unit}"
    if len(claim.readings) == 1:
        return f"{bound}{entry.value:g} {entry.unit}"
    names = list(claim.readings)
    sizes = [f"{size / MIB:,.0f}" for size in claim.readings.values()]
    return f"{bound}{entry.value:g} {names[0]} = {sizes[0]} MiB, or {names[1]} = {sizes[1]} MiB"


def shown(claim: Claim, value: float) -> str:
    """Our value in words: bytes in MiB, the rest in the unit of the claim."""
    return _SHOWN[claim.entry.unit](value)


_SHOWN: dict[str, Callable[[float], str]] = {
    **dict.fromkeys(BYTE_UNITS, lambda v: f"{v / MIB:,.0f} MiB"),
    "ratio": lambda v: f"{v:.2f}\u00d7",
    "fraction": lambda v: f"{v:.3f}",
    "%": lambda v: f"{100 * v:.1f} %",
    "pp": lambda v: f"{100 * v:+.2f} pp".replace("-", "\u2212"),
    "samples/s": lambda v: f"{v:,.1f} /s",
    "ms": lambda v: f"{1e3 * v:.1f} ms",
    "s": lambda v: f"{v:.1f} s",
    "h": lambda v: f"{v / 3600:.2f} h",
}


def value_text(claim: Claim, side: Side) -> str:
    """Our value in words; the least and the greatest where many cells could be meant, a dash where there is none."""
    if side.span is not None:
        return f"{shown(claim, side.span[0])} to {shown(claim, side.span[1])}"
    return DASH if side.value is None else shown(claim, side.value)


def ratio_text(side: Side) -> str:
    """Ours / published: ``0.98 (MB), 0.94 (MiB)``, or one number where the unit is known."""
    ratios = side.ratios or {}
    if len(ratios) > 1:
        return ", ".join(f"{ratio:.2f} ({name})" for name, ratio in ratios.items())
    return "".join(f"{ratio:.2f}" for ratio in ratios.values()) or DASH


def plain_rows(judged: Iterable[Judged]) -> list[list[str]]:
    """A line a claim in words, for the terminal and Markdown; a star stands for :data:`KERNEL`."""
    rows = []
    for each in judged:
        claim = each.claim
        row = [claim.id, claim.entry.claim, claim.entry.provenance, published(claim)]
        for side in (each.predicted, each.measured):
            star = "*" if side.value is not None and kernel_marks(claim, side) else ""
            row += [value_text(claim, side) + star, side.text]
        rows.append([*row, each.measured.where or DASH])
    return rows


PLAIN_HEADS = ("id", "claim", "from", "published", "predicted", "verdict", "measured", "verdict", "device")


def terminal(judged: Sequence[Judged]) -> tuple[Sequence[str], list[list[str]], list[str]]:
    """Heads and rows for a terminal, without the columns of measurements where there are none, and lines below.

    Args:
        judged: the claims that are shown.
    """
    rows, notes, width = plain_rows(judged), [], len(PLAIN_HEADS)
    if not any_measured(judged):
        width, notes = 6, [UNMEASURED]
    if any(row[place].endswith("*") for row in rows for place in (4, 6)):
        notes.append(KERNEL)
    return PLAIN_HEADS[:width], [row[:width] for row in rows], notes


def markdown(judged: Sequence[Judged]) -> str:
    """A Markdown table and a line of counts."""
    rows = plain_rows(judged)
    lines = [PLAIN_HEADS, ["---"] * len(PLAIN_HEADS), *rows]
    body = "\n".join("| " + " | ".join(_escaped(word) for word in line) + " |" for line in lines)
    starred = f"\n\\{KERNEL}\n" if any(row[place].endswith("*") for row in rows for place in (4, 6)) else ""
    return f"{body}\n{starred}\n{counts(judged)}\n"


def _escaped(word: str) -> str:
    return word.replace("|", "\\|").replace("*", "\\*")


def csv_text(judged: Sequence[Judged]) -> str:
    """CSV with raw values: bytes, seconds, fractions; empty where absent."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(PLAIN)
    for each in judged:
        claim, sides = each.claim, (each.predicted, each.measured)
        row: list[object] = [claim.paper.name, claim.id, claim.entry.provenance, claim.entry.value, claim.entry.unit,
                             claim.entry.kernel]  # fmt: skip
        for side in sides:
            row += ["" if side.value is None else repr(side.value), ratio_text(side) if side.ratios else "", side.text]
        writer.writerow([*row, each.measured.where])
    return out.getvalue()
