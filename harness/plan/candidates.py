"""Which methods a plan compares, and what is found out about each: one row, from one process if need be."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import ValidationError
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
)

from harness import registry
from harness.contracts import Unavailable, Unsupported
from harness.errors import UsageError, unknown
from harness.plan.predictor import Cost, Measured, Predictor, Subject
from harness.plan.search import Largest, largest
from harness.spec import CellSpec, Ref

BASELINE = "bptt"
"""What slow-downs are against."""
BUDGET = "budget"
"""The option by which a method takes a byte budget."""
MINIMUM = "min"
"""Its value for as little memory as possible."""
HALF = "0.5x"
FAR = 2
"""A T above so many times the subject's is not predicted but read off a line: a prediction takes time in proportion to
T (our choice)."""
TRIES = 4
"""Predictions for one edge: two close it where the peak is affine; a staircase (micro-batches) may stay open (our
choice)."""
UNTRACEABLE = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)
FINAL = (Unsupported, Unavailable, UsageError, ValidationError, ValueError, NotImplementedError, MemoryError)
"""What a real run would meet as well."""


@dataclass(frozen=True)
class Row:
    """What is known of one method.

    Args:
        method: with its options.
        gradient: ``exact`` or ``biased``.
        model: ``same``, or ``changed: what``.
        numerics: ``same`` or ``reduced``.
        source: how the bytes were found; empty where they were not.
        cost: of a step at the subject's T and N; None where ``reason`` says why.
        batch: largest that fits at the subject's T.
        steps: largest T that fits at the subject's N.
        reason: why there is no prediction, or what limits one.
    """

    method: Ref
    gradient: str
    model: str
    numerics: str
    source: str = ""
    cost: Cost | None = None
    batch: Largest | None = None
    steps: Largest | None = None
    reason: str | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def label(self) -> str:
        """The method with the options that are not at their defaults."""
        return registry.short_label("methods", self.method)

    @property
    def kind(self) -> str:
        """``exact``, ``exact, changed model`` or ``biased``."""
        return f"{self.gradient}, changed model" if self.model != "same" else self.gradient

    def to_json(self) -> dict[str, Any]:
        """For a pipe."""
        return asdict(self) | {"method": self.method.model_dump(mode="json")}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Row:
        """What :meth:`to_json` gave."""
        parts = {
            "method": Ref.model_validate(row["method"]),
            "cost": row["cost"] and Cost(**row["cost"]),
            "batch": row["batch"] and Largest(**row["batch"]),
            "steps": row["steps"] and Largest(**row["steps"]),
            "notes": tuple(row["notes"]),
        }
        return cls(**row | parts)


def chosen(methods: Sequence[str] | None, available: int | None) -> list[Ref]:
    """The methods to compare.

    Args:
        methods: ``name`` or ``name:option=value:...``; None or empty: all that are installed, with default options.
        available: bytes that a method which takes a budget may use, without the optimizer's state; None: half of what
            BPTT needs.

    Raises:
        UsageError: an unknown method or option.
    """
    if methods:
        return [ref for word in methods for ref in _given(word, available)]
    entries = registry.entries("methods").values()
    return [ref for entry in entries if entry.plugin for ref in _variants(entry.name, {}, available)]


def missing() -> list[tuple[str, str]]:
    """Installed methods that cannot be used, with the reason."""
    entries = registry.entries("methods").values()
    return [(entry.name, entry.unavailable) for entry in entries if entry.unavailable is not None]


def _given(word: str, available: int | None) -> list[Ref]:
    name, *pairs = word.split(":")
    if name not in registry.entries("methods"):
        raise unknown("method", name, registry.entries("methods"), where="--methods")
    return _variants(name, options_of(pairs, f"--methods {name}"), available)


def options_of(pairs: Iterable[str], where: str) -> dict[str, Any]:
    """Options from ``key=value`` words; values are read as TOML where they can be, as text otherwise.

    Raises:
        UsageError: a word without ``=``.
    """
    found = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"{where} {pair!r}: allowed are options as key=value")
        try:
            found[key] = tomllib.loads(f"x = {text}")["x"]
        except tomllib.TOMLDecodeError:
            found[key] = text
    return found


def _variants(name: str, options: dict[str, Any], available: int | None) -> list[Ref]:
    """One reference, or for a method that takes a budget two: what the user has, and the smallest possible."""
    where = f"--methods {name}"
    if BUDGET not in registry.plugin("methods", name, where).options.model_fields or BUDGET in options:
        return [registry.complete("methods", name, options, where)]
    found = []
    given = HALF if available is None else f"{max(1, available // 2**20)}MiB"
    for budget in (given, MINIMUM):
        try:
            found.append(registry.complete("methods", name, {**options, BUDGET: budget}, where))
        except UsageError:
            continue
    return found or [registry.complete("methods", name, options, where)]


def budgeted(method: Ref) -> bool:
    """Whether a method was given a budget other than the smallest possible."""
    return method.options.get(BUDGET, MINIMUM) != MINIMUM


def share_limits(rows: Sequence[Row]) -> list[Row]:
    """Rows in which a method with a budget has the limits of its row with the smallest: there it ends up."""
    least = {row.method.name: row for row in rows if row.method.options.get(BUDGET) == MINIMUM}
    return [
        replace(row, batch=least[row.method.name].batch, steps=least[row.method.name].steps)
        if budgeted(row.method) and row.method.name in least and row.batch is None
        else row
        for row in rows
    ]


def evaluate(subject: Subject, method: Ref, available: int, limits: bool) -> Row:
    """Everything about one method.

    Args:
        subject: what is planned for.
        method: with its options.
        available: bytes for tensors.
        limits: also look for the largest batch and T.
    """
    plugin = registry.plugin("methods", method.name)
    row = Row(method, plugin.gradient, plugin.model, plugin.numerics)
    if plugin.ledger is not None:
        return replace(row, reason=f"not predicted: {plugin.ledger}")
    predictor, cost, reason = _cost(subject, method)
    if cost is None:
        return replace(row, reason=reason)
    row = replace(row, source=predictor.source, cost=cost, reason=reason)
    return _limits(row, predictor, subject.spec, available) if limits else row


def _cost(subject: Subject, method: Ref) -> tuple[Predictor, Cost | None, str | None]:
    """Under fake tensors; where these cannot run the model, from small real steps."""
    predictor = Predictor(subject, method, replayed=BUDGET in method.options)
    try:
        return predictor, predictor.base(), None
    except FINAL as error:
        return predictor, None, _text(error)
    except Exception as error:  # a user's model may fail in any way under fake tensors
        traced = error
    measured = Measured(subject, method)
    why = "it depends on values" if isinstance(traced, UNTRACEABLE) else _text(traced)
    try:
        cost = measured.base()
    except Exception as error:
        return measured, None, _text(error)
    return measured, cost, f"cannot run under fake tensors ({why}): {measured.source}, extrapolated"


def _limits(row: Row, predictor: Predictor, spec: CellSpec, available: int) -> Row:
    cost = row.cost
    assert cost is not None
    notes = list[str]()
    found: dict[str, Largest | None] = {}
    for name, size, peak, far in (
        ("batch", spec.batch, lambda n: predictor.peak(spec.T, n), None),
        ("steps", spec.T, lambda t: predictor.peak(t, spec.batch), FAR * spec.T),
    ):
        known = {size: cost.peak_bytes}
        try:
            found[name] = largest(peak, available, known, cost.fixed_bytes, far=far, tries=TRIES, straight=True)
        except Exception as error:  # another size may be one that the model cannot take
            found[name] = None
            notes.append(f"largest {'batch' if name == 'batch' else 'T'} unknown: {_text(error)}")
    return replace(row, batch=found["batch"], steps=found["steps"], notes=tuple(notes))


def _text(error: BaseException) -> str:
    words = " ".join(str(error).split())
    if isinstance(error, (Unsupported, Unavailable, UsageError, ValueError)) and words:
        return words
    return f"{type(error).__name__}: {words}"
