"""Put the reference results into README.md: ``python scripts/reference_table.py``; run it after ``compact_store.py``.

Every folder of ``results/reference`` but ``predicted`` is the store of one machine. Of each, the suite ``gpu-versus``, or
else the one with most measured cells, becomes a table, under a line that names machine, date and commit. Without such a
store there is no table: nothing is shown that was not measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.record import Record
from harness.registry import short_label
from harness.store import Store
from reports.cells import mib, milliseconds
from reports.collect import machine_line
from reports.labels import Labels

ROOT = Path(__file__).resolve().parent.parent
README, REFERENCE = ROOT / "README.md", ROOT / "results" / "reference"
BEGIN, END = "<!-- from results/reference: scripts/reference_table.py -->", "<!-- end -->"
PREDICTED, FIRST = "predicted", "gpu-versus"
HEADS = ("method", "model", "T", "batch", "peak live MiB", "allocator MiB", "step ms", "against", "J a step")


def tables(reference: Path = REFERENCE) -> str:
    """A table a machine as Markdown; empty where no machine has measured.

    Args:
        reference: folder of the machines' stores.
    """
    stores = sorted(path for path in reference.glob("*") if path.is_dir() and path.name != PREDICTED)
    return "\n\n".join(text for path in stores if (text := "\n".join(_machine(path))))


def _machine(path: Path) -> Iterator[str]:
    records = [record for _, record in Store(path).records() if not record.spec.predicted]
    counts = Counter(record.suite for record in records if record.memory or record.timing)
    if not counts:
        return
    suite = FIRST if FIRST in counts else counts.most_common(1)[0][0]
    shown = sorted((record for record in records if record.suite == suite), key=_order)
    labels = Labels(record.spec for record in shown)
    for source in dict.fromkeys(_source(record) for record in shown):
        yield f"**{path.name}**: suite `{suite}` on {source}"
        yield ""
        yield from _markdown([HEADS, *(_row(record, labels) for record in shown if _source(record) == source)])


def _order(record: Record) -> tuple[str, int, int, str, int]:
    spec = record.spec
    return spec.model.label, spec.T, spec.batch, spec.method.label, spec.seed


def _source(record: Record) -> str:
    """Machine, date and commit of a record."""
    code = record.provenance.get("code") or {}
    commit = str(code.get("git_sha") or "unknown commit")[:10] + (" with changes" if code.get("git_dirty") else "")
    return f"{machine_line(record)}; {record.created[:10]}; {commit}; torch {_torch(record)}"


def _torch(record: Record) -> str:
    return str((record.provenance.get("torch") or {}).get("version") or "of unknown version")


def _row(record: Record, labels: Labels) -> tuple[str, ...]:
    spec, memory, timing = record.spec, record.memory, record.timing
    names = short_label("methods", spec.method), labels.short("model", spec.model)
    sizes = (*names, str(spec.T), str(spec.batch))
    if memory is None and timing is None:
        return (*sizes, record.status, "", "", "", "")
    ratio = None if timing is None else timing.ratio
    energy = None if timing is None else timing.energy_per_step_j
    return (
        *sizes, _mib(memory and memory.peak_live_bytes), _mib(memory and memory.cuda_allocated_bytes),
        "-" if timing is None else milliseconds(timing.step_time_s),
        "-" if ratio is None or timing is None else f"{ratio:.2f} x {timing.baseline}",
        "-" if energy is None else f"{energy:.3g}",
    )  # fmt: skip


def _mib(value: int | None) -> str:
    return "-" if value is None else mib(value)


def _markdown(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (rows[0], ("---",) * len(rows[0]), *rows[1:]):
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"


def page(text: str, reference: Path = REFERENCE) -> str:
    """The README with its tables made anew; a text without the markers stays as it is.

    Args:
        text: of the README.
        reference: folder of the machines' stores.
    """
    if BEGIN not in text:
        return text
    before, rest = text.split(BEGIN)
    found = tables(reference)
    middle = f"\n\n## Measured\n\n{found}\n\n" if found else "\n"
    return f"{before}{BEGIN}{middle}{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    README.write_text(page(README.read_text("utf-8")), "utf-8")
