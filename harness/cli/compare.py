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
    help="Only these measures: peak, saved, allocated, ratio, time, fidelity, accuracy. Default: all.",
)
@click.option(
    "--threshold",
    metavar="P",
    default="5%",
    show_default=True,
    help="Bytes, ratios, times and gradient errors are worse from here on.",
)
@click.option(
    "--margin",
    metavar="P",
    default="1%",
    show_default=True,
    help="Accuracies are worse from here on, in percentage points.",
)
@click.option("--absolute", is_flag=True, help="Judge step times themselves, too: two runs on one quiet machine.")
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
    absolute: bool,
    everything: bool,
    form: str,
) -> None:
    """What changed from STORE_A to STORE_B, by the identity of cells.

    A cell is missing (only in A), new (only in B), failed now, fixed, changed or the same. Bytes of the ledger are
    compared exactly; gradients by their error against BPTT; accuracies by the differences over seeds.

    Times are compared only where machine and environment are the same, and by the ratio to the baseline, which was
    timed in turn: it is worse beyond the threshold and beyond what ratios scatter by from run to run. How the
    baseline's own times moved is told, not judged: a slower machine looks like slower code. Where cells were run
    several times (run --fresh), their mean counts, and the scatter is measured.

    Exit code 1: a cell failed now, or a measure is worse beyond its threshold. Cells that are missing do not count.
    """
    from harness.compare import METRICS, Limits
    from harness.compare import compare as compare_records
    from harness.compare.comparing import nearest
    from harness.errors import UsageError, unknown
    from harness.store import Store

    for name in metric - set(METRICS):
        raise unknown("measure", name, METRICS, "--metric")
    limits = Limits(_fraction(threshold, "--threshold"), _fraction(margin, "--margin"), absolute)
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
    click.echo(f"A: {stores[0]}\nB: {stores[1]}")
    for line in _places(found):
        click.echo(line)
    click.echo(_counts(found))
    if rows:
        click.echo()
        (print_table if form == "table" else _print_markdown)(HEADERS, rows)
    for note, count in _not_compared(found).items():
        click.echo(f"\nnot compared: ratio, time or allocator's bytes of {_cells(count)}: {note}")
    for line in _times(found):
        click.echo(f"\n{line}")


def _counts(found: Comparison) -> str:
    from harness.compare.comparing import KINDS

    counts = ", ".join(f"{found.counts[kind]} {kind}" for kind in KINDS if found.counts[kind])
    worse = len(found.worse)
    return f"{found.shared} cells in both; {counts}; {worse or 'nothing'} worse"


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _places(found: Comparison) -> Iterator[str]:
    """What of machine, environment and code differs."""
    for each in found.places:
        sides = [", ".join(values[:2]) + (", ..." if len(values) > 2 else "") for values in (each.before, each.after)]
        yield f"differs in {_cells(each.cells)}: {each.fact}: {sides[0]} -> {sides[1]}"


def _not_compared(found: Comparison) -> Counter[str]:
    notes = [
        {delta.note for delta in row.deltas if delta.verdict == "not compared" and delta.metric != "accuracy"}
        for row in found.rows
    ]
    return Counter(note for each in notes for note in each)


def _times(found: Comparison) -> Iterator[str]:
    """How the baselines moved, which nothing judges; and from where on a ratio is judged."""
    same = all(each.fact != "code.sha256" for each in found.places)
    for shift in found.shifts:
        timings = f"{shift.count} timings: {shift.low:.2f} to {shift.high:.2f}" if shift.count > 1 else "1 timing"
        ratios = "" if shift.ratios is None else f", ratios to it {shift.ratios:.2f} times (median)"
        cause = "the code is the same" if same else "machine or code"
        told = f"{shift.baseline} itself takes {shift.factor:.2f} times as long in B ({timings}){ratios}"
        yield f"{told}; not judged: {cause}"
    if found.ratio_limits and found.noise is not None:
        low, high = (f"{found.ratio_limits[i]:.2f}" for i in (0, -1))
        limit = low if low == high else f"{low} to {high}"
        scatter = found.noise.run_to_run
        source = "assumed; run --fresh in both stores measures it" if scatter is None else f"{100 * scatter:.1f} %"
        yield f"ratios are judged from {limit} times on (scatter from run to run: {source})"


def _lines(row: Row, everything: bool) -> list[list[str]]:
    """The row's lines in a table: one a measure that moved; one for a cell that is in one store only or has failed."""
    from harness.run.labels import cell_label

    label = cell_label(row.spec)
    over_seeds = any(delta.metric == "accuracy" for delta in row.deltas)
    hidden = () if everything else ("same", "not judged", "not compared")
    shown = [delta for delta in row.deltas if delta.verdict not in hidden]
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
        case "ratio":
            return f"{value:.3f}"
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
    scale, digits, unit = (1, ".3f", "") if delta.metric == "ratio" else (1e3, ".4g", " ms")
    intervals = delta.before_interval, delta.after_interval
    ends = [f"{scale * low:{digits}} to {scale * high:{digits}}{unit}" for low, high in intervals]
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
    return {
        "a": str(stores[0]),
        "b": str(stores[1]),
        "shared": found.shared,
        "counts": dict(found.counts),
        "differences": [asdict(each) for each in found.places],
        "shifts": [asdict(each) for each in found.shifts],
        "ratio_limits": found.ratio_limits,
        "run_to_run": None if found.noise is None else found.noise.run_to_run,
        "rows": rows,
    }
