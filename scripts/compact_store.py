"""Copy records into a small store to be committed: ``python scripts/compact_store.py SOURCE TARGET [--measured]``.

Of every cell the latest prediction that ended well or says why it cannot be made; with ``--measured`` the latest
measurement that ended well or whose failure is a result. Nothing that a table shows is changed: timelines are thinned at
their extremes, bytes by module are added up over the inner modules of a stage, and what tells about the machine and not
about the numbers (its name, load, for a prediction its kernel) is left out. Series files and snapshots are not copied.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.record import Record
from harness.store import Store, is_later
from harness.store.series import thin

POINTS = 100
"""Points of a timeline that stay."""
DEPTH = 2
"""Parts of a module's name that stay: ``stages.3.conv.0`` counts as ``stages.3``."""
KEPT = {True: ("ok", "unsupported"), False: ("ok", "unsupported", "oom", "timeout", "diverged")}
"""How a prediction, and how a measurement, may have ended."""
ABOUT_THE_MACHINE = {True: ("host", "kernel"), False: ("host",)}
LEFT_OUT = {
    True: "left out of the committed store: it says nothing about a prediction",
    False: "left out of the committed store: it says nothing about the numbers",
}


def compact(record: Record) -> dict[str, Any]:
    """The record as a small JSON document.

    Args:
        record: a prediction or a measurement.
    """
    found: dict[str, Any] = record.model_dump(mode="json")
    memory, facts = found["memory"], found["provenance"]
    if memory is not None:
        memory["timeline"] = thin(memory["timeline"], POINTS)
        memory["by_module"] = by_stage(memory["by_module"])
        memory["cuda_facts"].pop("snapshot", None)
    for phase in found["phases"].values():
        phase["traceback"] = None
    for name in ABOUT_THE_MACHINE[record.spec.predicted]:
        if facts.get("system", {}).get(name) is not None:
            facts["system"][name] = None
            facts["reasons"][f"system.{name}"] = LEFT_OUT[record.spec.predicted]
    facts.pop("load_average", None)
    return found


def by_stage(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bytes at the peak by stage and origin, largest first; their sum stays.

    Args:
        entries: ``module``, ``origin`` and ``bytes`` each.
    """
    sums: Counter[tuple[str, str]] = Counter()
    for entry in entries:
        sums[".".join(entry["module"].split(".")[:DEPTH]), entry["origin"]] += entry["bytes"]
    ordered = sorted(sums.items(), key=lambda item: (-item[1], item[0]))
    return [{"module": module, "origin": origin, "bytes": size} for (module, origin), size in ordered]


def main(source: Path, target: Path, predicted: bool = True) -> int:
    """Write the files; returns how many.

    Args:
        source: a store.
        target: a store; records of the cells that it has already are replaced.
        predicted: whether predictions are copied, or measurements.
    """
    latest: dict[tuple[str, str], Record] = {}
    for _, record in Store(source).records():
        key = record.suite, record.cell
        usable = record.spec.predicted == predicted and record.status in KEPT[predicted]
        if usable and (key not in latest or is_later(record, latest[key])):
            latest[key] = record
    for record in latest.values():
        path = Store(target).path_of(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob("*.json"):
            old.unlink()
        text = json.dumps(compact(record), ensure_ascii=False, separators=(",", ":"))
        path.write_text(f"{text}\n", encoding="utf-8")
    return len(latest)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--measured"]
    if len(words) != 2:
        sys.exit("usage: python scripts/compact_store.py SOURCE TARGET [--measured]")
    what = "measurements" if "--measured" in sys.argv else "predictions"
    print(f"{main(Path(words[0]), Path(words[1]), what == 'predictions')} {what} in {words[1]}")
