"""``snnbench compare``: two stores beside each other."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.options import words
from harness.cli.table import print_table

if TYPE_CHECKING:
    from harness.compare import Comparison, Delta, Row
    from harness.record import Record
    from harness.store import Store

FOLDER = click.Path(path_type=Path)
HEADERS = ("suite", "cell", "class", "measure", "A", "B", "B / A", "verdict")
NONE = "-"


@click.command(short_help="Compare two stores cell by cell; exit code 1 when something got worse.")
@click.argument("store_a", type=FOLDER)
@click.argument("store_b", type=FOLDER)
@click.option("--suite", metavar="S", multiple=True, help="Only this suite; give it again for another.")
@click.option(
    "--metric",
    metavar="M,...",
    multiple=True,
    callback=words,
    help="Only these measures: peak, saved, allocated, time, fidelity, accuracy. Default: all.",
)
@click.option(
    "--threshold",
    metavar="P",
    default="5%",
    show_default=True,
    help="Bytes, times and gradient errors are worse from here on.",
)
@click.option(
    "--margin",
    metavar="P",
    default="1%",
    show_default=True,
    help="Accuracies are worse from here on, in percentage points.",
)
@click.option("--all", "everything", is_flag=True, help="Show what is the same, too.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "md", "csv", "json"]),
    default="table",
    show_default=True,
    help="How the rows are printed.",
)
@click.pass_context
def compare(
    ctx: click.Context,
    store_a: Path,
    store_b: Path,
    suite: tuple[str, ...],
    metric: frozenset[str],
    threshold: str,
    margin: str,
    everything: bool,
    form: str,
) -> None:
    """What changed from STORE_A to STORE_B, by the identity of cells.

    A cell is missing (only in A), new (only in B), failed now, fixed, changed or the same. Bytes of the ledger are
    compared exactly; times only where machine and environment are the same, by their medians and intervals; gradients
    by their error against BPTT; accuracies by the differences over seeds.

    Exit code 1: a cell failed now, or a measure is worse beyond its threshold. Cells that are missing do not count.
    """
    from harness.compare import METRICS, Limits
    from harness.compare import compare as compare_records
    from harness.compare.comparing import nearest
    from harness.errors import UsageError, unknown
    from harness.store import Store

    for name in metric - set(METRICS):
        raise unknown("measure", name, METRICS, "--metric")
    limits = Limits(_fraction(threshold, "--threshold"), _fraction(margin, "--margin"))
    stores = Store(store_a), Store(store_b)
    suites = _suites(stores, suite)
    before, after = (list(_records(store, suites)) for store in stores)
    found = compare_records(before, after, limits, metric or METRICS)
    for store in stores:
        for damaged in store.damaged:
            click.echo(f"damaged record: {damaged}", err=True)
    if not found.shared:
        fields = nearest(before, after)
        why = f"; the two nearest differ in {', '.join(fields)}" if fields else ""
        raise UsageError(f"nothing to compare: no cell is both in {store_a} and in {store_b}{why}")
    _tell(found, (store_a, store_b), form, everything)
    ctx.exit(1 if found.worse else 0)


def _fraction(text: str, option: str) -> float:
    """``5%`` or ``0.05``.

    Raises:
        UsageError: neither.
    """
    from harness.errors import UsageError

    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UsageError(f"{option} {text!r}: not a share. Allowed: 5% or 0.05, not negative")
    return value


def _suites(stores: Sequence[Store], wanted: Sequence[str]) -> tuple[str, ...]:
    from harness.errors import unknown

    here = sorted({name for store in stores for name in store.suites()})
    for name in wanted:
        if name not in here:
            raise unknown("suite", name, here, "--suite")
    return tuple(dict.fromkeys(wanted))


def _records(store: Store, suites: Sequence[str]) -> Iterator[Record]:
    for name in suites or (None,):
        yield from (item.record for item in store.records(name))


def _tell(found: Comparison, stores: tuple[Path, Path], form: str, everything: bool) -> None:
    if form == "json":
        click.echo(json.dumps(_document(found, stores), indent=1))
        return
    rows = [line for row in found.rows for line in _lines(row, everything)]
    if form == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([HEADERS, *rows])
        click.echo(out.getvalue(), nl=False)
        return
    click.echo(f"A: {stores[0]}\nB: {stores[1]}\n{_counts(found)}")
    if rows:
        click.echo()
        (print_table if form == "table" else _print_markdown)(HEADERS, rows)
    for note, count in _not_compared(found).items():
        click.echo(f"\nnot compared: {count} of the times and allocator's bytes: {note}")


def _counts(found: Comparison) -> str:
    from harness.compare.comparing import KINDS

    counts = ", ".join(f"{found.counts[kind]} {kind}" for kind in KINDS if found.counts[kind])
    worse = len(found.worse)
    return f"{found.shared} cells in both; {counts}; {worse or 'nothing'} worse"


def _not_compared(found: Comparison) -> Counter[str]:
    return Counter(
        delta.note
        for row in found.rows
        for delta in row.deltas
        if delta.verdict == "not compared" and delta.metric != "accuracy"
    )


def _lines(row: Row, everything: bool) -> list[list[str]]:
    """The row's lines in a table: one a measure that moved; one for a cell that is in one store only or has failed."""
    from harness.run.labels import cell_label

    label = cell_label(row.spec)
    over_seeds = any(delta.metric == "accuracy" for delta in row.deltas)
    shown = [delta for delta in row.deltas if everything or delta.verdict not in ("same", "not compared")]
    lines = [[row.suite, label, row.kind, *_measure(delta)] for delta in shown]
    if row.before != row.after or row.failed or row.fixed:
        phases = ", ".join(row.failed or row.fixed)
        lines.insert(0, [row.suite, label, row.kind, "status", row.before or NONE, row.after or NONE, "", phases])
    elif everything and not lines and not over_seeds:
        lines.append([row.suite, label, row.kind, "status", row.before or NONE, row.after or NONE, "", ""])
    return lines


def _measure(delta: Delta) -> list[str]:
    name = f"{delta.metric} ({delta.at})" if delta.at else delta.metric
    ratio = ""
    if delta.metric == "accuracy" and delta.before is not None and delta.after is not None:
        ratio = f"{100 * (delta.after - delta.before):+.2f} points"
    elif delta.before and delta.after is not None:
        ratio = f"{delta.after / delta.before:.4f}"
    values = [_value(delta, delta.before), _value(delta, delta.after)]
    return [name, *values, ratio, "; ".join(filter(None, [delta.verdict, _interval(delta), delta.note]))]


def _value(delta: Delta, value: float | None) -> str:
    if value is None:
        return NONE
    match delta.metric:
        case "time":
            return f"{1e3 * value:.4g} ms"
        case "fidelity":
            return f"{value:.2e}"
        case "accuracy":
            return f"{100 * value:.2f} %"
    return f"{value:,.0f} B"


def _interval(delta: Delta) -> str:
    if delta.metric == "accuracy" and delta.after_interval is not None:
        low, high = (100 * end for end in delta.after_interval)
        return f"95 % interval {low:+.2f} to {high:+.2f} points"
    if delta.before_interval is None or delta.after_interval is None:
        return ""
    ends = [f"{1e3 * low:.4g} to {1e3 * high:.4g} ms" for low, high in (delta.before_interval, delta.after_interval)]
    return f"95 % intervals {ends[0]} and {ends[1]}"


def _print_markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for line in (headers, ["---"] * len(headers), *rows):
        click.echo("| " + " | ".join(cell.replace("|", "&#124;") for cell in line) + " |")


def _document(found: Comparison, stores: tuple[Path, Path]) -> dict[str, Any]:
    rows = [
        {
            "suite": row.suite,
            "cell": row.spec.hash,
            "label": row.spec.label(),
            "class": row.kind,
            "worse": row.worse,
            "before": row.before,
            "after": row.after,
            "failed": row.failed,
            "fixed": row.fixed,
            "measures": [asdict(delta) for delta in row.deltas],
        }
        for row in found.rows
    ]
    names = [str(store) for store in stores]
    return {"a": names[0], "b": names[1], "shared": found.shared, "counts": dict(found.counts), "rows": rows}
