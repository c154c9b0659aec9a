"""Short names: of a plugin's options, only those that vary on the page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

from pydantic import JsonValue

from harness.spec import CellSpec, Ref

Kind = Literal["method", "model", "data"]
KINDS: tuple[Kind, ...] = ("method", "model", "data")
LAYERS = 5
"""Entries from which on a list is written without brackets and quotes."""


class Labels:
    """Names methods, models and data sets as briefly as the other names on the page allow.

    A plugin that occurs with one set of options is called by its name; where several occur, the options that differ
    are added, so that labels stay unique.

    Args:
        specs: the specs of everything on the page.
    """

    def __init__(self, specs: Iterable[CellSpec]) -> None:
        specs = list(specs)
        seen: dict[tuple[Kind, str], dict[str, Ref]] = defaultdict(dict)
        self._baselines: dict[str, set[str]] = defaultdict(set)
        for spec in specs:
            self._baselines[spec.method.label].add(spec.baseline)
            for kind in KINDS:
                ref: Ref = getattr(spec, kind)
                seen[kind, ref.name].setdefault(ref.label, ref)
        self._varying = {key: _varying(list(refs.values())) for key, refs in seen.items()}
        self.methods = sorted({self.method(spec) for spec in specs})
        """All method labels in order; a label's place is its colour and marker."""

    def short(self, kind: Kind, ref: Ref) -> str:
        """The label of a plugin.

        Args:
            kind: which axis it is on.
            ref: the plugin, one of those given to the constructor.
        """
        varying = self._varying[kind, ref.name]
        keep = {key: _brief(value) for key, value in ref.options.items() if key in varying}
        return Ref(name=ref.name, options=keep).label

    def method(self, spec: CellSpec) -> str:
        """The label of a cell's method, with its baseline where the page has it against several.

        Args:
            spec: one of those given to the constructor.
        """
        label = self.short("method", spec.method)
        return f"{label} against {spec.baseline}" if len(self._baselines[spec.method.label]) > 1 else label

    def place(self, label: str) -> int:
        """A method label's place in :attr:`methods`."""
        return self.methods.index(label)


def _brief(value: JsonValue) -> JsonValue:
    """An option as a heading can hold it: a network's layers as ``64-128-A``, a float without its last digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list) and len(value) >= LAYERS:
        return "-".join(map(str, value))
    return value


def _varying(refs: list[Ref]) -> set[str]:
    """Option keys on which the refs differ, or which not all of them have."""
    keys = {key for ref in refs for key in ref.options}
    absent = object()
    return {
        key for key in keys if any(ref.options.get(key, absent) != refs[0].options.get(key, absent) for ref in refs)
    }
