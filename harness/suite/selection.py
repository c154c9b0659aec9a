"""``--only axis=value,...``: some of a suite's cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from harness.errors import UsageError, unknown
from harness.registry import short_label
from harness.spec import CellSpec, Ref


class Candidate(NamedTuple):
    """A cell, and the grid of the suite that asks for it."""

    grid: str
    spec: CellSpec


def _ref(kind: str, ref: Ref) -> set[str]:
    return {ref.name, ref.label, short_label(kind, ref)}


AXES: dict[str, Callable[[Candidate], set[str]]] = {
    "grid": lambda c: {c.grid},
    "method": lambda c: _ref("methods", c.spec.method),
    "model": lambda c: _ref("models", c.spec.model),
    "data": lambda c: _ref("datasets", c.spec.data),
    "T": lambda c: {str(c.spec.T)},
    "batch": lambda c: {str(c.spec.batch)},
    "loss": lambda c: {c.spec.loss.kind},
    "precision": lambda c: {c.spec.precision},
    "device": lambda c: {c.spec.device},
    "devices": lambda c: {str(c.spec.devices)},
    "seed": lambda c: {str(c.spec.seed)},
    "phases": lambda c: set(c.spec.phases),
    "predicted": lambda c: {str(c.spec.predicted).lower()},
}
"""What a cell answers to, by axis. Plugins answer to their name, to their label with all options, and to their label
with the options that are not at their defaults."""


def parse_only(items: Iterable[str]) -> dict[str, list[str]]:
    """``["method=a,b(K=1, M=2)", "T=4"]`` -> ``{"method": ["a", "b(K=1, M=2)"], "T": ["4"]}``.

    Commas inside brackets do not separate; the same axis given twice adds up.

    Raises:
        UsageError: an item without ``=``, without a value, or with an unknown axis.
    """
    only: dict[str, list[str]] = {}
    for item in items:
        axis, equals, text = item.partition("=")
        axis = axis.strip()
        values = [value for part in _parts(text) if (value := part.strip())]
        if not equals or not values:
            raise UsageError(f"--only {item}: write axis=value[,value...]. Axes: {', '.join(AXES)}")
        _known_axis(axis)
        only.setdefault(axis, []).extend(values)
    return only


def select(candidates: list[Candidate], only: dict[str, list[str]], where: str) -> list[Candidate]:
    """The candidates that have, on every axis named, one of the values given.

    Args:
        candidates: all cells.
        only: values by axis.
        where: suite and profile, for the error.

    Raises:
        UsageError: an unknown axis, a value that no cell has, or a combination that no cell has.
    """
    for axis, values in only.items():
        _known_axis(axis)
        exist = _existing(candidates, axis)
        for value in values:
            if value not in exist:
                raise unknown(f"{axis} in {where}", value, exist, where=f"--only {axis}={value}")
    kept = candidates
    for axis, values in only.items():
        kept, before = [c for c in kept if AXES[axis](c) & set(values)], kept
        if not kept:
            rest = ", ".join(sorted(_existing(before, axis)))
            given = f"--only {axis}={','.join(values)}"
            raise UsageError(f"{given}: the other --only leave no such cell of {where}. Allowed: {rest}")
    return kept


def _parts(text: str) -> list[str]:
    """Split at the commas that are outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _known_axis(axis: str) -> None:
    if axis not in AXES:
        raise unknown("axis", axis, AXES, where=f"--only {axis}=...")


def _existing(candidates: list[Candidate], axis: str) -> set[str]:
    return {value for candidate in candidates for value in AXES[axis](candidate)}
