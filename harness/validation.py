"""The one place where pydantic's errors become the harness's: place, given value, allowed values, nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from harness.errors import UsageError

MAX_SHOWN = 80
"""Characters of a given value that a message quotes."""


def usage_error(error: ValidationError, model: type[BaseModel], where: str, joint: str = ": ") -> UsageError:
    """A pydantic error in the harness's words.

    Args:
        error: what pydantic raised.
        model: the model that was validated.
        where: the file, or the place that holds the data.
        joint: between ``where`` and the key path: ``": "`` after a file, ``"."`` after a key.

    Returns:
        The first problem in full, and the places of any others.
    """
    # an unknown key comes first: a key that is missing is often the misspelt one
    problems = sorted(error.errors(include_url=False), key=lambda p: p["type"] != "extra_forbidden")
    text = _sentence(problems[0], model, where, joint)
    others = [key_path(p["loc"]) for p in problems[1:]]
    return UsageError(f"{text} (also wrong: {', '.join(others)})" if others else text)


def key_path(loc: Iterable[int | str]) -> str:
    """A location as one writes it: ``("grid", 1, "T")`` -> ``grid[1].T``."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def quoted(value: Any) -> str:
    """A given value for a message, cut to :data:`MAX_SHOWN` characters."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def nearest(given: Any, allowed: Iterable[str]) -> str:
    """`` Did you mean 'x'?``, or nothing."""
    plain = {name.lower(): name for name in allowed}
    near = difflib.get_close_matches(str(given).lower(), plain, n=1)
    return f" Did you mean {plain[near[0]]!r}?" if near else ""


def _sentence(problem: Any, model: type[BaseModel], where: str, joint: str) -> str:
    loc, kind = problem["loc"], problem["type"]
    path = key_path(loc)
    place = f"{where}{joint}{path}" if path else where
    if kind == "extra_forbidden":
        allowed = sorted({name for owner in _models_at(model, loc[:-1]) for name in _keys(owner)})
        return f"{place}: unknown key.{nearest(loc[-1], allowed)} Allowed: {', '.join(allowed) or '(none)'}"
    if kind == "missing":
        return f"{place}: missing"
    if kind == "literal_error":
        return f"{place}: {quoted(problem['input'])} is not allowed.{_near_literal(problem)}"
    if kind == "too_short":
        return f"{place}: {quoted(problem['input'])}: needs at least {problem['ctx']['min_length']} entry"
    value = f"{quoted(problem['input'])}: " if loc else ""
    return f"{place}: {value}{_plain(problem['msg'])}"


def _near_literal(problem: Any) -> str:
    expected = problem["ctx"]["expected"]
    names = [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",")]
    return f"{nearest(problem['input'], names)} Allowed: {', '.join(names)}"


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should", "should")


def _keys(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield field.alias or name


def _models_at(model: type[BaseModel], loc: Iterable[int | str]) -> list[type[BaseModel]]:
    """The models that the data at ``loc`` may be an instance of."""
    found = [model]
    for part in loc:
        if isinstance(part, int):
            continue
        stepped = [m for owner in found for m in _step(owner, part)]
        found = stepped or found
    return found


def _step(owner: type[BaseModel], key: str) -> list[type[BaseModel]]:
    for name, field in owner.model_fields.items():
        if key in (name, field.alias):
            return list(_inside(field.annotation))
    return []


def _inside(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model named in an annotation such as ``list[Model] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _inside(part)
