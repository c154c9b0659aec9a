"""Which cells have a claim's conditions, and how others differ from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from harness.record import Record
from reports.claims.loading import Claim
from reports.claims.schema import Plugin
from reports.groups import Item, context

NEEDS_DATA = ("accuracy", "accuracy_difference", "training_time", "epoch_time")
"""Metrics for which a declared shape cannot stand for the data set."""


@dataclass(frozen=True)
class Match:
    """A cell of the claim's method, and of its baseline where the claim has one.

    Args:
        item: the method's record.
        base: the baseline's, of a cell that is otherwise the same.
        differences: from the claim's conditions, one phrase each; none where it has them.
    """

    item: Item
    base: Item | None
    differences: tuple[str, ...]


class Cells:
    """Records that claims are looked for in, indexed once; stale ones are left out.

    Args:
        items: predicted or measured records of any suites.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._methods: dict[str, list[Item]] = defaultdict(list)
        self._contexts: dict[object, list[Item]] = defaultdict(list)
        for item in items:
            if not item.stale:
                self._methods[item.record.spec.method.name].append(item)
                self._contexts[_context(item.record)].append(item)

    def matches(self, claim: Claim) -> Iterator[Match]:
        """All cells of the claim's method, those that differ in their conditions too."""
        wanted = claim.entry.baseline
        for item in self._methods.get(claim.entry.method.name, ()):
            if is_plugin(item.record.spec.method, claim.entry.method):
                base = None if wanted is None else self._baseline(item, wanted)
                yield Match(item, base, tuple(_differences(claim, item.record)))

    def _baseline(self, item: Item, wanted: Plugin) -> Item | None:
        """The newest record of the baseline with everything else the same: only those two may share a ratio."""
        found = [
            other
            for other in self._contexts[_context(item.record)]
            if is_plugin(other.record.spec.method, wanted) and _may_share(other.record, item.record)
        ]
        return max(found, key=lambda other: (other.record.created, other.record.run_id), default=None)


def _context(record: Record) -> object:
    return context(record), record.spec.seed, record.spec.predicted


def is_plugin(ref: Any, wanted: Plugin) -> bool:
    """Whether a plugin has the wanted name and options; options that the claim does not give may have any value.

    Args:
        ref: a cell's method, model or data.
        wanted: the claim's.
    """
    absent = object()
    return ref.name == wanted.name and all(ref.options.get(k, absent) == v for k, v in wanted.options.items())


def _may_share(one: Record, other: Record) -> bool:
    """No ratio crosses normalisation modes; a record without one failed before its model was built."""
    return None in (one.normalisation, other.normalisation) or one.normalisation == other.normalisation


def _differences(claim: Claim, record: Record) -> Iterator[str]:
    setting, spec = claim.setting, record.spec
    if setting.model is not None:
        if spec.model.name != setting.model.name:
            yield f"model {spec.model.name}, not {setting.model.name}"
        elif not is_plugin(spec.model, setting.model):
            yield f"{_options(spec.model.options, setting.model)}, not {setting.model.label}"
    yield from (f"with {name}" for name in setting.without if spec.model.options.get(name) is not None)
    if setting.data is not None:
        yield from _data(claim, record)
    for name in ("T", "batch"):
        published, ours = getattr(setting, name), getattr(spec, name)
        if published is not None and ours != published:
            yield f"{name} = {ours}, not {published}"
    if setting.precision is not None and spec.precision not in setting.precision:
        yield f"{spec.precision}, not {' or '.join(setting.precision)}"
    if spec.devices > 1:
        yield f"a batch shared by {spec.devices} devices"


def _options(given: dict[str, Any], wanted: Plugin) -> str:
    wrong = [f"{key}={given.get(key)}" for key, value in wanted.options.items() if given.get(key) != value]
    return f"{wanted.name}({', '.join(wrong)})"


def _data(claim: Claim, record: Record) -> Iterator[str]:
    """Bytes and time need an input of the same size, whatever it shows; accuracy needs the data set itself."""
    wanted, ref = claim.setting.data, record.spec.data
    assert wanted is not None
    if wanted.sample is None or claim.entry.metric in NEEDS_DATA:
        if ref.name != wanted.name:
            yield f"data {ref.name}, not {wanted.name}"
        return
    sample: Any = record.data.get("sample") or ref.options.get("sample")
    classes = record.data.get("classes") or ref.options.get("classes")
    if sample is None and ref.name != wanted.name:
        yield f"data {ref.name}, not {wanted.name}"
    if sample is not None and list(sample) != wanted.sample:
        yield f"input {'x'.join(map(str, sample))}, not {'x'.join(map(str, wanted.sample))}"
    if wanted.classes is not None and classes is not None and classes != wanted.classes:
        yield f"{classes} classes, not {wanted.classes}"
