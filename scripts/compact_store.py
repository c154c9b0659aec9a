"""Copy predictions into a small store to be committed: ``python scripts/compact_store.py SOURCE TARGET``.

Of every cell the latest prediction that ended well or says why it cannot be made. Nothing that a table shows is changed:
timelines are thinned at their extremes, bytes by module are added up over the inner modules of a stage, and what tells
about the machine and not about the numbers (host, kernel, load) is left out. Series files are not copied.
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
KEPT = ("ok", "unsupported")
ABOUT_THE_MACHINE = ("host", "kernel")
LEFT_OUT = "left out of the committed store: it says nothing about a prediction"


def compact(record: Record) -> dict[str, Any]:
    """The record as a small JSON document.

    Args:
        record: a prediction.
    """
    found: dict[str, Any] = record.model_dump(mode="json")
    memory, facts = found["memory"], found["provenance"]
    if memory is not None:
        memory["timeline"] = thin(memory["timeline"], POINTS)
        memory["by_module"] = by_stage(memory["by_module"])
    for phase in found["phases"].values():
        phase["traceback"] = None
    for name in ABOUT_THE_MACHINE:
        if facts.get("system", {}).get(name) is not None:
            facts["system"][name] = None
            facts["reasons"][f"system.{name}"] = LEFT_OUT
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


def main(source: Path, target: Path) -> int:
    """Write the files; returns how many.

    Args:
        source: a store.
        target: a store; records of the cells that it has already are replaced.
    """
    latest: dict[tuple[str, str], Record] = {}
    for _, record in Store(source).records():
        key = record.suite, record.cell
        usable = record.spec.predicted and record.status in KEPT
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
    if len(sys.argv) != 3:
        sys.exit("usage: python scripts/compact_store.py SOURCE TARGET")
    print(f"{main(Path(sys.argv[1]), Path(sys.argv[2]))} predictions in {sys.argv[2]}")
