"""Read stores; tell the current records from superseded and stale ones."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.record import Record
from harness.store import Store
from reports.groups import Item, latest


@dataclass
class Collection:
    """What some stores hold.

    Args:
        suites: current records by suite; stale ones are marked.
        superseded: number of older runs of the same cell under the same fingerprint, by suite.
        problems: files that could not be read, one line each.
    """

    suites: dict[str, list[Item]] = field(default_factory=dict)
    superseded: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def collect(stores: Sequence[Path]) -> Collection:
    """Read stores, each record once (merged stores share run ids).

    Args:
        stores: folders of records.

    Raises:
        UsageError: a folder is no store.
    """
    found: dict[str, dict[str, Item]] = defaultdict(dict)
    collection = Collection()
    for root in stores:
        store = Store(root)
        for path, record in store.records():
            found[record.suite].setdefault(record.run_id, Item(path, record))
        collection.problems += [str(damage) for damage in store.damaged]
    for suite in sorted(found):
        items = mark_stale(latest(found[suite].values()))
        collection.suites[suite] = items
        collection.superseded[suite] = len(found[suite]) - len(items)
    return collection


def machine(record: Record) -> dict[str, Any]:
    """What identifies the device that a record was measured on, from its provenance."""
    facts = record.provenance
    gpu = facts.get("gpu") or {}
    return {
        "device": record.spec.device,
        "cpu": (facts.get("cpu") or {}).get("model"),
        "gpu": sorted(set(gpu_names(gpu.get("devices") or []))) if record.spec.device == "cuda" else None,
        "threads": facts.get("threads"),
    }


def machine_line(record: Record) -> str:
    """The machine in one line, for headings."""
    facts = machine(record)
    threads = (
        f"{facts['threads']} thread{'s' if facts['threads'] != 1 else ''}" if facts["threads"] else "threads unknown"
    )
    cpu = facts["cpu"] or "unknown CPU"
    gpus = ", ".join(facts["gpu"] or ())
    return f"{gpus + ' with ' if gpus else ''}{cpu}, {threads}"


def gpu_names(devices: Any) -> list[str]:
    """Names of the GPUs in a provenance's list of devices (names or tables with a name)."""
    return [str(device.get("name", device)) if isinstance(device, dict) else str(device) for device in devices]


def mark_stale(items: Iterable[Item]) -> list[Item]:
    """Mark every record whose machine has a newer record with another fingerprint.

    One machine's records are comparable while code and environment stay the same; after a change, the older ones are
    shown apart and marked.

    Args:
        items: current records of one suite.
    """
    items = list(items)
    newest: dict[str, Item] = {}
    for item in items:
        key = json.dumps(machine(item.record), sort_keys=True)
        best = newest.get(key)
        if best is None or item.record.created > best.record.created:
            newest[key] = item
    current = {item.record.fingerprint for item in newest.values()}
    return [dataclasses.replace(item, stale=item.record.fingerprint not in current) for item in items]
