"""The method tables as CSV (raw values), Markdown and LaTeX (as on the page)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from reports.page import Suite
from reports.tables import COLUMNS, Line, Table, frame

SHOWN = tuple(i for i, column in enumerate(COLUMNS) if not column.wide)
"""Columns that fit a printed page."""


def csv(suite: Suite, out: Path) -> str:
    """One line a method and group, raw values in the store's units; empty where absent.

    Args:
        suite: its records.
        out: folder of the file, which record paths are relative to.
    """
    return frame(suite.tables, suite.labels, out).to_csv(index=False)


def markdown(suite: Suite, out: Path) -> str:
    """A table a group, with its heading.

    Args:
        suite: its records.
        out: folder of the file; unused, the tables hold no links.
    """
    parts = [f"# {suite.about.title}\n"]
    for table in suite.tables:
        shown = printed(table)
        heads = ["method", *shown.columns]
        rows = [heads, ["---"] + ["---:"] * len(shown.columns)]
        rows += [[str(name), *map(str, line)] for name, line in zip(shown.index, shown.to_numpy(), strict=True)]
        body = "\n".join("| " + " | ".join(_pipe(word) for word in row) + " |" for row in rows)
        parts.append(f"## {_title(suite, table)}\n\n{suite.headings.details(table.group)}\n\n{body}\n")
    return "\n".join([*parts, *(f"* {line}" for line in legend()), ""])


def latex(suite: Suite, out: Path) -> str:
    r"""A ``table`` a group, for ``\input``; needs the package booktabs.

    Args:
        suite: its records.
        out: folder of the file; unused, the tables hold no links.
    """
    tables = []
    for table in suite.tables:
        shown = printed(table).reset_index(names="method")
        styler = shown.rename(columns=_tex).map(_tex).style.hide(axis="index")
        caption, columns = _tex(_title(suite, table)), "l" + "r" * (shown.shape[1] - 1)
        tables.append(
            styler.to_latex(
                hrules=True, caption=caption, column_format=columns, position="htbp", position_float="centering"
            )
        )
    notes = "".join(f"% {line}\n" for line in legend())
    return "% needs \\usepackage{booktabs}\n" + notes + "\n".join(tables)


def printed(table: Table) -> pd.DataFrame:
    """A group's table as text, by method; without the columns that nobody asked for.

    Args:
        table: its cells.
    """
    kept = [i for i in SHOWN if any(line.cells[i].asked for line in table.lines)]
    columns = [COLUMNS[i].title for i in kept]
    rows = [[_marked(line.cells[i].text, line.cells[i].marks) for i in kept] for line in table.lines]
    return pd.DataFrame(rows, index=[_name(line) for line in table.lines], columns=columns)


def legend() -> list[str]:
    """What the columns are, one line each."""
    return [f"{COLUMNS[i].title}: {COLUMNS[i].help}" for i in SHOWN]


def _name(line: Line) -> str:
    return _marked(line.label, {"reconstruction": ""} if line.reconstruction else {})


def _marked(text: str, marks: Mapping[str, str]) -> str:
    return f"{text} ({', '.join(marks)})" if marks else text


def _title(suite: Suite, table: Table) -> str:
    return suite.headings.title(table.group) + (" (stale)" if table.group.stale else "")


def _pipe(word: str) -> str:
    return word.replace("|", "\\|")


_TEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\u00d7": r"$\times$", "\u00b1": r"$\pm$",
    "\u0394": r"$\Delta$", "\u2212": r"$-$", "\u2013": "--", "\u00b7": r"$\cdot$", "\u2713": "",
})  # fmt: skip


def _tex(word: str) -> str:
    return word.translate(_TEX).strip()


FORMATS: Mapping[str, tuple[str, Callable[[Suite, Path], str]]] = {
    "csv": ("csv", csv), "md": ("md", markdown), "latex": ("tex", latex),
}  # fmt: skip
"""File ending and writer of each format beside HTML."""
