"""Write the tables of docs/methods.md from the registered methods: ``python scripts/methods_page.py``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import registry
from harness.contracts import Method

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
BEGIN, END = "<!-- from the registry: scripts/methods_page.py -->", "<!-- end -->"
_NEEDS = re.compile(r"^Needs(?: from the model)?: (.+?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)
_MODULE = re.compile(r":mod:`([\w.]+)`")


def tables() -> str:
    """What each method promises, and where it comes from and what it needs, as two Markdown tables.

    Raises:
        ValueError: the docstring of a method's module does not say what the method needs.
    """
    found = [entry.plugin for entry in registry.entries("methods").values() if entry.plugin is not None]
    # Third-party methods are installed in some environments only.
    found = [plugin for plugin in found if plugin.__module__.startswith("methods.")]
    modules = {plugin.__module__: plugin.name for plugin in found}
    promises = [
        (_name(p), p.gradient, p.model, p.numerics, "yes" if p.flat_in_time else "no", f"`{p.baseline}`") for p in found
    ]
    origins = [(_name(p), p.paper, _needs(p.__module__, modules)) for p in found]
    heads = ("method", "gradient", "model", "numerics", "saved bytes flat in T", "ratios against")
    return "\n".join([*_table(heads, promises), "", *_table(("method", "paper", "needs"), origins)])


def _name(plugin: type[Method]) -> str:
    return f"`{plugin.name}`" + (" \\*" if plugin.reconstruction else "")


def _needs(module: str, modules: dict[str, str]) -> str:
    """The paragraph of the module's docstring, in Markdown."""
    match = _NEEDS.search(sys.modules[module].__doc__ or "")
    if match is None:
        raise ValueError(f"{module}: its docstring has no paragraph 'Needs from the model: ...'")
    text = " ".join(match[1].split()).replace("``", "`")
    return _MODULE.sub(lambda m: f"`{modules.get(m[1], m[1])}`", text)


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    for row in (heads, ("---",) * len(heads), *rows):
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"


def page(text: str) -> str:
    """The page with its tables made anew."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
