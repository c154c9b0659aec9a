"""The method table of a comparison group as the page shows it."""

from __future__ import annotations

from collections.abc import Mapping

from reports.about import About
from reports.cells import Cell
from reports.collect import machine_line
from reports.headings import Headings, facts
from reports.tables import COLUMNS, Line, Table
from reports.view import Grid, Head, without_unasked

WORDS = ("gradient", "model", "numerics", "status", "promise")
"""Columns of words, aligned to the left."""


def method_grid(number: int, table: Table, headings: Headings, about: About) -> Grid:
    """A group's table; columns that no cell of the group was to measure are left out and named below.

    Args:
        number: of the group on the page.
        table: its cells.
        headings: names of groups.
        about: the suite's description, for what a profile substitutes.
    """
    heads = [Head("method", "name, with the options that vary on this page")]
    heads += [Head(column.title, column.help, column.key not in WORDS) for column in COLUMNS]
    heads.append(Head("records", "every record behind the row"))
    rows = [[_name(line), *line.cells, _records(line)] for line in table.lines]
    group = table.group
    line = facts(group, headings.labels)
    line["environment"] = headings.environments[str(line.pop("fingerprint"))]
    details = f"{headings.details(group)} \u00b7 {machine_line(group.record)}"
    title, badges = headings.title(group), _badges(table, about)
    return without_unasked(Grid(f"group-{number}", heads, rows, title, details, facts=line, badges=badges))


def _name(line: Line) -> Cell:
    spec = line.row.spec
    marks = {}
    if line.reconstruction:
        marks["reconstruction"] = "our reading of the paper: its own equations are not available"
    if spec.method.name == spec.baseline:
        marks["baseline"] = f"ratios of the methods that name {spec.baseline} are against this row"
    return Cell(line.label, line.label, spec.method.label, marks=marks)


def _badges(table: Table, about: About) -> Mapping[str, str]:
    """What must stand beside the title: predictions, stale records, substitutes."""
    group, badges = table.group, {}
    if group.spec.predicted:
        badges["predicted"] = "bytes under fake tensors: nothing was run, no device was needed"
    if group.stale:
        badges["stale"] = "code or environment has changed since these records were made"
    if group.spec.profile in about.substitutes:
        badges["substitute"] = about.substitutes[group.spec.profile]
    if any(item.record.data.get("synthetic") for line in table.lines for item in line.row.items):
        badges["synthetic input"] = "the data set was absent: random input of its shape"
    if variant := group.record.data.get("variant"):
        badges["variant"] = str(variant)
    return badges


def _records(line: Line) -> Cell:
    """A link to each record behind a row."""
    items = line.row.items
    links = tuple((f"seed {item.record.spec.seed}", item) for item in items)
    return Cell(len(items), "", links=links)
