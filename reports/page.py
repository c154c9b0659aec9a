"""One suite's page: everything in one HTML file that fetches nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from harness.stats import EQUIVALENCE_MARGIN
from reports import allocator, environments, failures, fits, overview, prediction, short
from reports.about import About
from reports.claims import judge, load
from reports.claims.table import claim_grid
from reports.figures.base import Scene
from reports.grids import method_grid
from reports.groups import Item, group
from reports.headings import Headings
from reports.labels import Labels
from reports.links import href
from reports.sections import Section, figure_sections
from reports.tables import COLUMNS, Table, method_table

BACKTICKS = re.compile(r"`([^`]+)`")
MANY_TABLES = 20
"""Above it the curves come before the tables (our choice: nobody scrolls past more to find them)."""


@dataclass(frozen=True)
class Suite:
    """A suite's records, prepared once for all formats.

    Args:
        name: the suite.
        items: current records, stale ones marked.
        superseded: number of older runs.
        about: what the suite's own file says.
    """

    name: str
    items: Sequence[Item]
    superseded: int
    about: About
    labels: Labels = field(init=False)
    tables: Sequence[Table] = field(init=False)
    headings: Headings = field(init=False)

    def __post_init__(self) -> None:
        labels = Labels(item.record.spec for item in self.items)
        groups = group(self.items)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "tables", [method_table(each, labels) for each in groups])
        object.__setattr__(self, "headings", Headings(groups, labels))


def render(suite: Suite, out: Path, others: Iterable[str] = ()) -> str:
    """The page as HTML.

    Args:
        suite: its records.
        out: folder of the page, which links to records are relative to.
        others: problems to report on the page, one line each (unreadable files).
    """
    files = [*suite.items, *allocator.snapshots(suite.items)]
    links = {item.path: href(item.path, out) for item in files}
    return (
        environment(links)
        .get_template("page.html.j2")
        .render(
            suite=suite,
            about=suite.about,
            overview=overview.overview(suite.items, suite.superseded, suite.about, suite.labels),
            problems=list(others),
            sections=sections(suite),
            columns=COLUMNS,
            margin=EQUIVALENCE_MARGIN,
            facets=facets(suite.headings),
        )
    )


def sections(suite: Suite) -> list[Section]:
    """All sections in order.

    Args:
        suite: its records.
    """
    items, labels = suite.items, suite.labels
    grids = [method_grid(i, table, suite.headings, suite.about) for i, table in enumerate(suite.tables)]
    fresh = [item for item in items if not item.stale]
    comparison = Section("comparison", "Comparison", grids=grids, empty="There are no records.")
    answers = [
        claim_section(suite),
        *figure_sections(Scene(suite.tables, suite.headings)),
        Section("fits", "What fits", "The largest T, and the largest batch, whose training step has a peak of at most "
                "8, 24 and 80 GiB: interpolated linearly between the sizes of this page. The ledger's bytes leave out "
                "the CUDA context, workspaces and fragmentation.", [fits.fits(suite.tables, suite.headings)],
                empty="No method has peaks at three or more sizes."),
    ]  # fmt: skip
    return [
        Section("short", "In short", "Which method wins what: every row is read off one comparison, the one with most "
                "methods in it; numbers of different comparisons are not pooled. Other networks, sizes and machines may "
                "answer differently: the tables below have them all, `snnbench plan` and `snnbench bench` answer "
                "for your own.",
                [short.short(suite.tables, suite.headings)], empty="No comparison has three methods that ended well."),
        *([comparison, *answers] if len(grids) <= MANY_TABLES else [*answers, comparison]),
        Section("failures", "Failures", "Failures are results: every cell that did not end well, with the phase and "
                "the reason. None is re-run unless asked.", [failures.failures(items, labels)],
                empty="Every cell ended well."),
        Section("predicted", "Predicted against measured", "The same cells under fake tensors and for real. On a CPU "
                "both must agree to the byte.", [prediction.predictions(fresh, labels)],
                empty="No cell was both predicted and measured."),
        Section("allocator", "Ledger against allocator", "Steps that ran on a GPU: the ledger's peak beside that of CUDA's "
                "caching allocator; what the allocator's rounding and cuBLAS's workspaces explain of the difference, and "
                "what they do not (cuDNN's workspaces, mostly).", [allocator.allocator(fresh, labels)],
                empty="No cell was measured on a GPU."),
        Section("methods", "Methods", "What each method promises; options are those of the first record.",
                [overview.method_list(items, labels)]),
        Section("omissions", "What was left out", "Metrics that the records hold as null, with their reasons.",
                [overview.omissions(items)], empty="Every metric was measured."),
        Section("provenance", "Provenance", "The environments that the records were made in, and the data.",
                [environments.environments(items, suite.headings.environments), environments.data_sets(items)]),
    ]  # fmt: skip


def claim_section(suite: Suite) -> Section:
    """The papers' claims that a cell of this suite belongs to, each with its verdicts.

    Args:
        suite: its records.
    """
    substitutes = {(suite.name, profile): what for profile, what in suite.about.substitutes.items()}
    judged = [each for each in judge(load(), suite.items, substitutes) if each.predicted.match or each.measured.match]
    return Section(
        "claims", "Published claims",
        "What the papers report beside what these cells give. A verdict is given on cells with the published "
        "conditions only; reduced cells, other devices and substitutes are not comparable, whatever the number.",
        [claim_grid(judged)], note="`snnbench claims` shows all claims over all suites; docs/claims.md has the rule.",
        empty="No published claim is about a cell of this suite.",
    )  # fmt: skip


def facets(headings: Headings) -> dict[str, list[str]]:
    """Facts with two or more values, for the filters.

    Args:
        headings: of the page.
    """
    found = {name: [str(value) for value in values] for name, values in headings.values.items() if len(values) > 1}
    if "fingerprint" in found:
        found.pop("fingerprint")
        found["environment"] = list(headings.environments.values())
    return found


def environment(links: Mapping[Path, str]) -> Environment:
    """Jinja with escaping on; ``link`` turns an item into its relative URL, ``words`` what is in backticks into code.

    Args:
        links: URL by a record's path.
    """
    jinja = Environment(
        loader=PackageLoader("reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters["link"] = lambda item: links[item.path]
    jinja.filters["words"] = lambda text: Markup(BACKTICKS.sub(r"<code>\1</code>", str(escape(text))))
    return jinja
