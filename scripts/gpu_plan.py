"""Is ``snnbench plan`` right? Its largest batch, run under a cap on the allocator; and a larger one, which must not fit.

For every budget and method: plan; run one training step of the largest batch in a process of its own whose allocator may
hold no more than the budget less the CUDA context; then a batch at least a tenth larger, large enough that its tensors
alone exceed the cap. The first has to end well and the second out of memory.

    python scripts/gpu_plan.py OUT.json [--device cuda] [--seconds 600] [--budgets 8GiB,24GiB] [--methods A,B]

On a CPU nothing caps an allocator: there the ledger's peak is compared with the cap, which rehearses the script and
confirms nothing. Rows are written one by one, so that an abort loses little.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.plan.size import CONTEXT_BYTES, Budget, show_size
from harness.spec import CellSpec, Ref

LARGER = 1.1
"""The batch that must not fit is at least so many times the planned one."""
BEYOND = 1.02
"""Its predicted peak is at least so many times the cap: the ledger is within 3 % of the allocator, mostly below it."""
TIMEOUT_S = 240
"""Of one training step with all that comes before it."""
METHODS = ("bptt", "checkpoint-compress:level=O4", "streamed")
Peak = Callable[[int], int]
"""Predicted peak in bytes of a batch."""
Run = Callable[[CellSpec, int], dict[str, Any]]
"""Runs a step of a cell under a cap in bytes; gives ``status`` and what was seen."""


@dataclass
class Row:
    """One budget and method.

    Args:
        budget_bytes: of the device.
        cap_bytes: what its allocator may hold.
        method: with its options.
        batch: the largest that the plan says fits; 0: none.
        predicted_bytes: its peak.
        seen: status and peaks of its step; empty where none was run.
        above: the larger batch.
        above_predicted_bytes: its peak.
        above_seen: status and peaks of its step.
        note: why something is missing.
    """

    budget_bytes: int
    cap_bytes: int
    method: str
    batch: int = 0
    predicted_bytes: int | None = None
    seen: dict[str, Any] | None = None
    above: int | None = None
    above_predicted_bytes: int | None = None
    above_seen: dict[str, Any] | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """``confirmed``, ``loose`` (more would have fitted), ``refuted`` (what was planned did not fit), or ``-``."""
        if self.seen is None or self.seen["status"] not in ("ok", "oom"):
            return "-"
        if self.seen["status"] == "oom":
            return "refuted"
        if self.above_seen is None or self.above_seen["status"] not in ("ok", "oom"):
            return "fits"
        return "confirmed" if self.above_seen["status"] == "oom" else "loose"


def larger(batch: int, cap: int, peak: Peak) -> tuple[int, int]:
    """A batch that cannot fit, and its predicted peak.

    Args:
        batch: the largest that fits.
        cap: bytes.
        peak: predicts.
    """
    known, held = batch, peak(batch)
    size = max(batch + 1, math.ceil(batch * LARGER))
    while (found := peak(size)) <= BEYOND * cap:
        slope = max(1.0, (found - held) / (size - known))
        known, held = size, found
        size = max(size + 1, math.ceil(size + (BEYOND * cap - found) / slope))
    return size, found


def confirm(row: Row, spec: CellSpec, peak: Peak, run: Run) -> Row:
    """Run both batches of a planned row.

    Args:
        row: with its batch; filled in.
        spec: of the cell to run, at any batch.
        peak: predicts.
        run: runs.
    """
    if not row.batch:
        row.note = row.note or "not even one sample fits"
        return row
    row.predicted_bytes = peak(row.batch)
    row.seen = run(sized(spec, row.batch), row.cap_bytes)
    row.above, row.above_predicted_bytes = larger(row.batch, row.cap_bytes, peak)
    row.above_seen = run(sized(spec, row.above), row.cap_bytes)
    return row


def sized(spec: CellSpec, batch: int) -> CellSpec:
    """The cell at another batch, with data enough for one."""
    options = {**spec.data.options, "n_train": max(batch, spec.data.options["n_train"])}
    return spec.model_copy(update={"batch": batch, "data": Ref(name=spec.data.name, options=options)})


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of the JSON file for people."""
    heads = ("budget", "method", "batch", "predicted", "allocated", "cap", "ended", "batch above", "ended", "verdict")
    lines = [heads]
    for row in rows:
        seen, above = row["seen"] or {}, row["above_seen"] or {}
        lines.append((
            show_size(row["budget_bytes"]), row["method"], str(row["batch"]), _size(row["predicted_bytes"]),
            _size(seen.get("allocated_bytes")), _size(row["cap_bytes"]), seen.get("status", "-"),
            str(row["above"] or "-"), above.get("status", "-"),
            row["verdict"] + (f" ({row['note']})" if row["note"] else ""),
        ))  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _size(value: int | None) -> str:
    return "-" if value is None else show_size(value)


def planned(args: argparse.Namespace, budget: Budget) -> Iterator[tuple[Row, CellSpec]]:
    """The plan's answer for a budget: a row a method, and its cell."""
    from harness.executors.server import ForkServer
    from harness.plan.planning import Question, answer

    name, options = args.model
    words = tuple(f"{word}:budget=min" if word == "streamed" else word for word in args.methods)
    question = Question(
        name, budget, model_options=options, sample=args.sample, classes=args.classes, T=args.T, batch=args.batch,
        methods=words, jobs=min(len(words), os.cpu_count() or 1),
    )  # fmt: skip
    server = ForkServer()
    try:
        found = answer(question, server).rows
    finally:
        server.stop()
    for one in found:
        cap = budget.total_bytes - CONTEXT_BYTES
        row = Row(budget.total_bytes, cap, one.label, one.batch.value if one.batch else 0, note=one.reason or "")
        update = {"method": one.method, "device": args.device, "predicted": False}
        yield row, question.spec().model_copy(update=update)


def predictor(spec: CellSpec) -> Peak:
    """Predicted peaks of a cell by batch."""
    from harness.api import measure_memory

    known: dict[int, int] = {}

    def peak(batch: int) -> int:
        if batch not in known:
            update = {"batch": batch, "device": "cpu", "predicted": True}
            known[batch] = measure_memory(spec.model_copy(update=update)).peak_live_bytes or 0
        return known[batch]

    return peak


def in_a_process(spec: CellSpec, cap: int) -> dict[str, Any]:
    """A step of a cell in a fresh process under a cap."""
    command = [sys.executable, str(Path(__file__)), "--step", spec.model_dump_json(), "--cap", str(cap)]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"status": "timeout", "reason": f"longer than {TIMEOUT_S} s"}
    try:
        return dict(json.loads(found.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        return {"status": "killed", "reason": f"exit code {found.returncode}: {found.stderr.strip()[-500:]}"}


def step(spec: CellSpec, cap: int) -> dict[str, Any]:
    """A training step of a cell in this process, whose allocator may hold ``cap`` bytes."""
    import torch

    from harness.api import measure_memory
    from harness.failure import classify

    if spec.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        if cap > total:
            return {"status": "skipped", "reason": f"this GPU has {show_size(total)}"}
        torch.cuda.set_per_process_memory_fraction(cap / total)
    try:
        memory = measure_memory(spec)
    except Exception as error:
        result = classify(error)
        return {"status": result.status, "reason": result.reason, "bytes_requested": result.bytes_requested}
    found = {
        "status": "ok", "ledger_bytes": memory.peak_live_bytes, "allocated_bytes": memory.cuda_allocated_bytes,
        "reserved_bytes": memory.cuda_reserved_bytes, "process_bytes": memory.nvml_process_bytes,
    }  # fmt: skip
    if spec.device == "cpu" and (memory.peak_live_bytes or 0) > cap:
        found |= {"status": "oom", "reason": "rehearsal: the ledger's peak is above the cap; nothing ran out of memory"}
    return found


def sweep(args: argparse.Namespace, run: Run = in_a_process) -> list[dict[str, Any]]:
    """All budgets and methods, as far as the time goes; the file is written after each."""
    begin, rows = time.monotonic(), list[dict[str, Any]]()
    for text in args.budgets:
        for row, spec in planned(args, Budget.of(text)):
            if time.monotonic() - begin > args.seconds:
                row.note = "no time was left"
            else:
                confirm(row, spec, predictor(spec), run)
            rows.append(asdict(row) | {"verdict": row.verdict})
            document = {"device": args.device, "model": args.model, "T": args.T, "rows": rows}
            args.out.write_text(json.dumps(document, indent=1))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    return rows


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """What to plan for; the defaults are the reference network."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--budgets", type=lambda text: text.split(","), default=["8GiB", "24GiB"])
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--model", type=_model, default=("sew-resnet", {"depth": 34, "decay_input": False}))
    parser.add_argument("--sample", type=lambda text: tuple(map(int, text.split(","))), default=(3, 224, 224))
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("-T", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32, help="where the search for the largest begins")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--cap", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def _model(text: str) -> tuple[str, dict[str, Any]]:
    found = json.loads(text)
    return found.pop("name"), found


def main(words: Sequence[str]) -> int:
    """Plan, run, tell; 1 where a plan was refuted."""
    args = arguments(words)
    if args.step:
        print(json.dumps(step(CellSpec.model_validate_json(args.step), args.cap)))
        return 0
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print("gpu_plan: needs a CUDA device; --device cpu rehearses", file=sys.stderr)
            return 2
    rows = sweep(args)
    print(table(rows))
    return int(any(row["verdict"] == "refuted" for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
