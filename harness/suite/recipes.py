"""Training recipes by name: TOML files in the folder ``recipes`` of a package that offers suites.

A file says where the recipe was published, what it is, and beside it the conditions under which it was published: they
inform, and change no cell.
"""

from __future__ import annotations

import functools
import tomllib
from importlib.resources.abc import Traversable
from typing import Annotated

from pydantic import Field, ValidationError

from harness.errors import UsageError, unknown
from harness.spec import LossSpec, Precision, Recipe
from harness.suite.installed import toml_files
from harness.suite.schema import RecipeEntry, Table
from harness.validation import usage_error

FOLDER = "recipes"


class Published(Table):
    """What the recipe was published with; for people."""

    data: str
    model: str
    T: Annotated[int, Field(ge=1)]
    batch: Annotated[int, Field(ge=1)]
    augmentation: str
    """In words; what of it a data set offers is an option of the data set."""
    precision: Precision | None = None
    """None: not known."""


class RecipeFile(Table):
    """A recipe file.

    Attributes:
        name: the file's name.
        title: one line.
        source: the paper and the file of its code, or what else the numbers come from.
        note: what the file leaves out or decides, or "".
        recipe: optimizer and schedule.
        loss: the objective, or None where the source does not say.
        published: conditions.
    """

    name: str
    title: str
    source: Annotated[str, Field(min_length=1)]
    note: str = ""
    recipe: RecipeEntry
    loss: LossSpec | None = None
    published: Published


def names() -> dict[str, Traversable]:
    """Files of all installed recipes by name, sorted.

    Raises:
        UsageError: two packages hold a recipe of the same name, or a package cannot be imported.
    """
    return toml_files("recipe", FOLDER)


def load(name: str, where: str) -> RecipeFile:
    """An installed recipe.

    Args:
        name: as in :func:`names`.
        where: file and key, for the error.

    Raises:
        UsageError: no such recipe, or its file is wrong.
    """
    installed = names()
    if name not in installed:
        raise unknown("recipe", name, installed, where=where)
    found = parse(installed[name].read_bytes(), str(installed[name]))
    if found.name != name:
        raise UsageError(f"{installed[name]}: name: {found.name!r}: a recipe is called as its file, {name!r}")
    return found


@functools.lru_cache(maxsize=128)
def parse(data: bytes, file: str) -> RecipeFile:
    """A recipe from a file's bytes.

    Args:
        data: TOML, UTF-8.
        file: what errors call it.

    Raises:
        UsageError: the message names file, key, given and allowed values.
    """
    try:
        table = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file}: not valid TOML: {error}") from None
    try:
        found = RecipeFile.model_validate(table, strict=True)
        Recipe.model_validate(found.recipe.model_dump(exclude={"name"}))
    except ValidationError as error:
        raise usage_error(error, RecipeFile, file) from None
    if found.recipe.name is not None:
        raise UsageError(f"{file}: recipe.name: a recipe file cannot name another recipe")
    return found
