"""TOML files of installed packages: suites, and what lies beside them."""

from __future__ import annotations

from importlib import metadata, resources
from importlib.resources.abc import Traversable

from harness.errors import UsageError

GROUP = "snnbench.suites"
"""Entry-point group; a value is a package that holds ``*.toml``."""


def toml_files(kind: str, folder: str | None = None) -> dict[str, Traversable]:
    """Files by name, sorted.

    Args:
        kind: what errors call one.
        folder: inside each package; a package may lack it. Default: the package itself.

    Raises:
        UsageError: two packages hold one of the same name, or a package cannot be imported.
    """
    found: dict[str, Traversable] = {}
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        for file in _files(point, folder):
            name = file.name.removesuffix(".toml")
            if name in found:
                raise UsageError(f"{kind} {name!r} exists twice: {found[name]} and {file}; rename one of them")
            found[name] = file
    return dict(sorted(found.items()))


def _files(point: metadata.EntryPoint, folder: str | None) -> list[Traversable]:
    try:
        place = resources.files(point.value)
    except ImportError as error:
        raise UsageError(f"entry point {point.name!r} of {GROUP}: package {point.value!r}: {error}") from None
    if folder is not None:
        place = place / folder
        if not place.is_dir():
            return []
    return sorted((f for f in place.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
