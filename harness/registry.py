"""Finds methods, models and data sets through entry points, built-in ones like third-party ones.

A plugin that cannot be imported, or whose class lacks what :mod:`harness.contracts` asks for, is listed with the
reason; it never stops the others.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, get_args

from pydantic import ValidationError

from harness.contracts import DataSource, Gradient, Method, ModelSource, Numerics, Options, Unavailable
from harness.errors import UsageError, unknown
from harness.spec import Ref, canonical_json
from harness.validation import usage_error

GROUPS = {"methods": "snnbench.methods", "models": "snnbench.models", "datasets": "snnbench.datasets"}
"""Entry-point group of each kind of plugin."""

SINGULAR = {"methods": "method", "models": "model", "datasets": "data set"}
BASES: dict[str, type] = {"methods": Method, "models": ModelSource, "datasets": DataSource}
TEXTS = {
    "methods": ("name", "summary", "paper"),
    "models": ("name", "summary", "source"),
    "datasets": ("name", "summary"),
}
"""Class attributes that have to be text."""


@dataclass(frozen=True)
class Entry:
    """A registered plugin.

    Args:
        name: the entry point's name, which is the plugin's.
        kind: a key of :data:`GROUPS`.
        distribution: the installed distribution that registers it.
        target: ``module:attribute``.
        plugin: the class, or None where it is unavailable.
        unavailable: why it cannot be used, or None.
    """

    name: str
    kind: str
    distribution: str
    target: str
    plugin: type[Any] | None
    unavailable: str | None


@functools.cache
def entries(kind: str) -> dict[str, Entry]:
    """All plugins of a kind, by name, in alphabetical order; imports them at the first call.

    Raises:
        UsageError: no such kind, or two distributions register the same name.
    """
    if kind not in GROUPS:
        raise unknown("kind of plugin", kind, GROUPS, where="registry")
    points = sorted(metadata.entry_points(group=GROUPS[kind]), key=lambda p: (p.name, _distribution(p)))
    for one, other in itertools.pairwise(points):
        if one.name == other.name:
            raise _collision(kind, one, other)
    names = {point.name for point in points}
    return {point.name: _entry(kind, point, names) for point in points}


def refresh() -> None:
    """Forget what was found: the next look-up reads the entry points again."""
    entries.cache_clear()


def plugin(kind: str, name: str, where: str = "plugin") -> type[Any]:
    """The class of a plugin.

    Args:
        kind: a key of :data:`GROUPS`.
        name: the plugin's name.
        where: file and key, or command-line option, for the error.

    Raises:
        UsageError: no plugin has this name.
        Unavailable: it is registered, but cannot be imported or is malformed.
    """
    entry = _known(kind, name, where)
    if entry.plugin is None:
        raise Unavailable(
            f"{SINGULAR[kind]} {name!r} cannot be used: {entry.unavailable}",
            f"install what it needs, or mend {entry.target} of {entry.distribution}",
        )
    return entry.plugin


def complete(kind: str, name: str, options: dict[str, Any], where: str) -> Ref:
    """A reference with all options: the given ones checked by the plugin, the others at their defaults.

    Args:
        kind: a key of :data:`GROUPS`.
        name: the plugin's name.
        options: the given options, as TOML or JSON has them; types are not converted (``"4"`` is no integer).
        where: file and key, or command-line option, for the error.

    Raises:
        UsageError: unknown plugin, unknown option, or a value that the plugin refuses.
        Unavailable: the plugin cannot be used, so nothing knows its options.
    """
    model: type[Options] = plugin(kind, name, where).options
    try:
        # Through JSON: strict about types there, yet a list still fits an option that is a tuple.
        given = model.model_validate_json(json.dumps(options), strict=True)
    except ValidationError as error:
        raise usage_error(error, model, where, joint=".") from None
    except TypeError as error:
        raise UsageError(f"{where}: {error}") from None
    return reference(name, given.model_dump(mode="json"), where)


def reference(name: str, options: dict[str, Any], where: str) -> Ref:
    """A reference to a plugin, options as they are.

    Raises:
        UsageError: an option has no place in JSON (a date, NaN, infinity).
    """
    try:
        canonical_json(options)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{where}: {options!r}: {error}; allowed are finite numbers, text, booleans, lists and tables"
        ) from None
    return Ref(name=name, options=options)


def create(kind: str, ref: Ref) -> Any:
    """A new instance of a plugin.

    Raises:
        UsageError: no plugin has this name, or it refuses the options.
        Unavailable: the plugin cannot be used.
    """
    where = f"{SINGULAR.get(kind, kind)} {ref.name}"
    found = plugin(kind, ref.name, where)
    try:
        return found(found.options.model_validate_json(json.dumps(ref.options), strict=True))
    except ValidationError as error:
        raise usage_error(error, found.options, where, joint=".") from None


def short_label(kind: str, ref: Ref) -> str:
    """Name and the options that differ from the plugin's defaults; all options where the plugin is unavailable."""
    entry = entries(kind).get(ref.name)
    if entry is None or entry.plugin is None:
        return ref.label
    told = {k: v for k, v in ref.options.items() if not _is_default(entry.plugin.options, ref.options, k)}
    return Ref(name=ref.name, options=told).label


def _is_default(options: type[Options], given: dict[str, Any], key: str) -> bool:
    """True where leaving ``key`` out gives the same options; a default may follow from the other options."""
    others = {k: v for k, v in given.items() if k != key}
    try:
        filled = options.model_validate_json(json.dumps(others), strict=True)
    except ValidationError:
        return False
    return filled.model_dump(mode="json").get(key) == given[key]


def _known(kind: str, name: str, where: str) -> Entry:
    found = entries(kind)
    if name not in found:
        raise unknown(SINGULAR[kind], name, found, where)
    return found[name]


def _distribution(point: metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "(unknown distribution)"


def _collision(kind: str, one: metadata.EntryPoint, other: metadata.EntryPoint) -> UsageError:
    return UsageError(
        f"{SINGULAR[kind]} {one.name!r} is registered twice: {one.value} by {_distribution(one)} and "
        f"{other.value} by {_distribution(other)}; uninstall one of them or rename its entry point"
    )


def _entry(kind: str, point: metadata.EntryPoint, names: set[str]) -> Entry:
    found, reason = None, None
    try:
        found = point.load()
    except (Exception, SystemExit) as error:  # a plugin's import may fail in any way; it must not take others along
        reason = f"import of {point.value} failed: {type(error).__name__}: {error}"
    else:
        reason = _fault(kind, point.name, found, names)
    usable = found if reason is None else None
    return Entry(point.name, kind, _distribution(point), point.value, usable, reason)


def _fault(kind: str, name: str, found: Any, names: set[str]) -> str | None:
    """What is wrong with a plugin, or None."""
    base = BASES[kind]
    if not (isinstance(found, type) and issubclass(found, base)):
        return f"malformed: {found!r} is no subclass of harness.contracts.{base.__name__}"
    faults = _common_faults(kind, name, found)
    if kind == "methods":
        faults += _method_faults(found, names)
    return f"malformed: {'; '.join(faults)}" if faults else None


def _common_faults(kind: str, name: str, found: type[Any]) -> list[str]:
    faults = [f"{key} must be text, is {_attribute(found, key)}" for key in TEXTS[kind] if not _text(found, key)]
    if _text(found, "name") and found.name != name:
        faults.append(f"its name is {found.name!r}, but its entry point is called {name!r}")
    if not (isinstance(found.options, type) and issubclass(found.options, Options)):
        faults.append(f"options must be a subclass of harness.contracts.Options, is {found.options!r}")
    if inspect.isabstract(found):
        faults.append(f"it lacks {', '.join(sorted(found.__abstractmethods__))}()")
    return faults


def _method_faults(found: type[Any], names: set[str]) -> list[str]:
    faults = []
    checks: list[tuple[str, Callable[[Any], bool], str]] = [
        ("gradient", get_args(Gradient).__contains__, _either(get_args(Gradient))),
        ("numerics", get_args(Numerics).__contains__, _either(get_args(Numerics))),
        ("model", _declared, "'same' or 'changed: what'"),
        ("ledger", lambda value: value is None or bool(isinstance(value, str) and value.strip()), "None or the reason"),
        ("baseline", lambda value: isinstance(value, str) and value in names, f"one of {', '.join(sorted(names))}"),
    ]
    for key, allowed, words in checks:
        if not allowed(getattr(found, key, None)):
            faults.append(f"{key} must be {words}, is {_attribute(found, key)}")
    return faults


def _declared(model: Any) -> bool:
    return model == "same" or (isinstance(model, str) and model.startswith("changed: ") and len(model.split()) > 1)


def _text(found: type[Any], key: str) -> bool:
    value = getattr(found, key, None)
    return isinstance(value, str) and bool(value.strip())


def _attribute(found: type[Any], key: str) -> str:
    return repr(getattr(found, key)) if hasattr(found, key) else "missing"


def _either(values: Iterable[str]) -> str:
    return " or ".join(repr(value) for value in values)
