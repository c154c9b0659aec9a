"""Where two stores were measured: what of machine, environment and code differs between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.compare.measures import FACTS
from harness.record import Record

TOLD = ("system.host", *FACTS, "code.sha256", "code.git_sha")
"""Provenance that a comparison tells; of a host's name only its hash is in a record, and it may be that of a container."""
TWICE = ("torch.git", "packages.torch")
"""Facts that ``torch.version`` tells already."""
SHORT = 12
"""Characters that are shown of a hash."""


@dataclass(frozen=True)
class Difference:
    """A fact that is not the same for every cell of both stores.

    Args:
        fact: its dotted name in the provenance.
        before: its values in A, as text.
        after: in B.
        cells: for how many cells it differs.
    """

    fact: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    cells: int


def differences(pairs: Iterable[tuple[Record, Record]]) -> list[Difference]:
    """Facts that differ, the machine's first.

    Args:
        pairs: records of each cell that is in both stores.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for one, other in pairs:
        old, new = dict(_flat(one.provenance)), dict(_flat(other.provenance))
        for name in (*old, *(name for name in new if name not in old)):
            values = old.get(name, "-"), new.get(name, "-")
            if values[0] != values[1] and name not in TWICE:
                found.setdefault(name, []).append(values)
    ordered = sorted(found, key=lambda name: next(i for i, fact in enumerate(TOLD) if name.startswith(fact)))
    return [Difference(name, *_sides(found[name]), len(found[name])) for name in ordered]


def _sides(pairs: Sequence[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Distinct values in A and in B."""
    return tuple(dict.fromkeys(old for old, _ in pairs)), tuple(dict.fromkeys(new for _, new in pairs))


def _flat(provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The told facts by dotted name; tables by their entries, GPUs by their names on a GPU only."""
    for fact in TOLD:
        value: Any = provenance
        for part in fact.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if fact == "gpu.devices":
            if provenance.get("device") == "cuda":
                yield fact, ", ".join(sorted({str(each.get("name")) for each in value or []}))
        elif isinstance(value, Mapping):
            yield from ((f"{fact}.{name}", str(each)) for name, each in value.items())
        else:
            yield fact, str(value)[:SHORT] if fact.startswith(("code", "system")) else str(value)
