"""The short tables at the end of a GPU run, from the exported records and the scripts' own files; the goals come last.

    python scripts/gpu_table.py TABLE.csv [--device cuda] [--kernels kernels.json] [--plan plan.json]

A goal is met, missed, or `-` where nothing was measured for it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from scripts import gpu_plan

MIB = 2**20
VERSUS = "gpu-versus"
LEDGER, BANDWIDTH, LESS, SLOWER, QUARTER = 0.03, 0.70, 8.0, 1.2, 0.25
"""Goals: the ledger's share of difference on exact methods; the fraction of a copy's bandwidth; times below BPTT's peak,
at most so much slower; and the part of BPTT's peak at which nothing is to be lost."""


class Goal(NamedTuple):
    """A line of the last table."""

    name: str
    wanted: str
    seen: str
    met: bool | None

    @property
    def verdict(self) -> str:
        """In a word."""
        return {True: "met", False: "missed", None: "-"}[self.met]


def cells(rows: pd.DataFrame) -> str:
    """One line a cell that was measured, failures counted below."""
    fine = rows[rows.cuda_allocated_bytes.notna() | rows.peak_live_bytes.notna() | rows.step_time_s.notna()]
    shown = pd.DataFrame(
        {
            "suite": fine.suite,
            "method": fine.method_label,
            "model": fine.model,
            "T": fine["T"],
            "batch": fine.batch,
            "ledger MiB": (fine.peak_live_bytes / MIB).round(1),
            "allocator MiB": (fine.cuda_allocated_bytes / MIB).round(1),
            "ledger/allocator": (fine.peak_live_bytes / fine.cuda_allocated_bytes).round(3),
            "step ms": (fine.step_time_s * 1e3).round(2),
            "x baseline": fine.ratio.round(3),
            "plan s": fine.plan_seconds.round(2),
            "J a step": fine.energy_per_step_j.round(3),
        }
    ).sort_values(["suite", "model", "T", "batch", "method"])
    lines = [shown.to_string(index=False, na_rep="-") if len(shown) else "no cell was measured on the GPU"]
    counts = rows.status.value_counts()
    lines.append("cells: " + (", ".join(f"{count} {status}" for status, count in counts.items()) or "none"))
    return "\n".join(lines)


def goals(rows: pd.DataFrame, kernels: dict[str, Any] | None, plan: dict[str, Any] | None) -> list[Goal]:
    """What the numbers say about the goals."""
    return [*_ledger(rows), *_kernels(kernels), *_versus(rows[rows.suite == VERSUS]), *_plan(plan)]


def _ledger(rows: pd.DataFrame) -> Iterator[Goal]:
    exact = rows[(rows.gradient == "exact") & rows.cuda_allocated_bytes.notna() & rows.peak_live_bytes.notna()]
    name, wanted = "ledger against allocator, exact methods", f"within {LEDGER:.0%}"
    if not len(exact):
        yield Goal(name, wanted, "no cell on a GPU", None)
        return
    off = (exact.cuda_allocated_bytes - exact.peak_live_bytes).abs() / exact.cuda_allocated_bytes
    worst = exact.loc[off.idxmax()]
    within = int((off <= LEDGER).sum())
    seen = f"{within} of {len(off)}; worst {off.max():.1%}: {worst.method_label} on {worst.model}"
    yield Goal(name, wanted, seen, within == len(off))


def _kernels(found: dict[str, Any] | None) -> Iterator[Goal]:
    wanted = f">= {BANDWIDTH:.0%} of a copy"
    for word, name in (("LIF", "fused LIF"), ("pack", "packing")):
        rows = [row for row in (found or {}).get("rows", []) if word in row["kernel"]]
        if not rows:
            yield Goal(name, wanted, "not measured", None)
            continue
        least = min(rows, key=lambda row: row["of_copy_bandwidth"])
        seen = ", ".join(f"{row['kernel']} {row['dtype']} {row['of_copy_bandwidth']:.0%}" for row in rows[:2])
        seen += f"; least {least['of_copy_bandwidth']:.0%}: {least['kernel']} {least['dtype']}"
        yield Goal(name, wanted, seen, least["of_copy_bandwidth"] >= BANDWIDTH)


def _versus(rows: pd.DataFrame) -> Iterator[Goal]:
    """Peak and step time beside BPTT's and SpikingJelly's level 4, each of the two methods."""
    peaks = rows.cuda_allocated_bytes.fillna(rows.peak_live_bytes)
    seen = {
        label: (float(peak), float(time))
        for label, peak, time in zip(rows.method_label, peaks, rows.step_time_s, strict=True)
        if pd.notna(peak) and pd.notna(time)
    }
    bptt, level4 = seen.get("bptt"), _first(seen, "sj-memopt", "4")
    for name, label in (
        ("streamed", _first(seen, "streamed", "min")), ("checkpoint-compress O4", _first(seen, "checkpoint-compress", "O4")),
    ):  # fmt: skip
        yield _against(name, label, bptt, f">= {LESS:g}x below BPTT at <= {SLOWER:g}x its step time", LESS, SLOWER)
        wanted = "below SpikingJelly level 4 in peak and step time"
        yield _against(name, label, level4, wanted, 1.0, 1.0)
    quarter = _first(seen, "streamed", f"{QUARTER}x")
    yield _against("streamed", quarter, bptt, "at a quarter of BPTT's peak no slower", 1 / QUARTER, 1.0)


def _first(seen: dict[str, Any], method: str, option: str) -> Any:
    return next((value for label, value in seen.items() if label.startswith(f"{method}(") and option in label), None)


def _against(name: str, ours: Any, theirs: Any, wanted: str, less: float, slower: float) -> Goal:
    if ours is None or theirs is None:
        return Goal(name, wanted, "not measured", None)
    smaller, times = theirs[0] / ours[0], ours[1] / theirs[1]
    return Goal(name, wanted, f"{smaller:.2f}x below at {times:.2f}x", smaller >= less and times <= slower)


def _plan(found: dict[str, Any] | None) -> Iterator[Goal]:
    rows = (found or {}).get("rows", [])
    if not rows:
        yield Goal("plan's largest batch", "fits; a larger one does not", "not measured", None)
        return
    verdicts = [row["verdict"] for row in rows]
    counts = {word: verdicts.count(word) for word in dict.fromkeys(verdicts)}
    seen = ", ".join(f"{count} {'not run' if word == '-' else word}" for word, count in counts.items())
    judged = [word for word in verdicts if word != "-"]
    met = all(word == "confirmed" for word in judged) if judged and (found or {}).get("device") == "cuda" else None
    yield Goal("plan's largest batch", "fits; a larger one does not", seen, met)


def text(path: str, device: str = "cuda", kernels: str = "", plan: str = "") -> str:
    """All tables.

    Args:
        path: the exported records.
        device: whose cells are shown.
        kernels: file of ``gpu_kernels.py``; it may be missing.
        plan: file of ``gpu_plan.py``; likewise.
    """
    rows = pd.read_csv(path)
    rows = rows[(rows.device == device) & ~rows.predicted.astype(bool)]
    measured, planned = _json(kernels), _json(plan)
    parts = [cells(rows)]
    if planned:
        parts.append(gpu_plan.table(planned["rows"]))
    found = goals(rows, measured, planned)
    if device != "cuda":
        parts.append("A rehearsal on a CPU: these numbers mean nothing.")
        found = [goal._replace(met=None) for goal in found]
    lines = [
        ("goal", "wanted", "seen", ""),
        *((g.name, g.wanted, g.seen, g.verdict) for g in found),
    ]
    return "\n\n".join([*parts, _aligned(lines)])


def _aligned(lines: Sequence[Iterable[str]]) -> str:
    table = [list(line) for line in lines]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    )


def _json(path: str) -> dict[str, Any] | None:
    file = Path(path)
    return json.loads(file.read_text()) if path and file.is_file() else None


def main(words: Sequence[str]) -> int:
    """Print them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    for name, default in (("--device", "cuda"), ("--kernels", ""), ("--plan", "")):
        parser.add_argument(name, default=default)
    print(text(**vars(parser.parse_args(words))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
