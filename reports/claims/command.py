"""From stores to verdicts, for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reports.about import about
from reports.claims.judge import Judged, judge
from reports.claims.loading import load
from reports.collect import collect


def judged_of(stores: Sequence[Path], papers: Sequence[str] = ()) -> tuple[list[Judged], list[str]]:
    """A verdict on every claim from all suites of some stores.

    Args:
        stores: folders of records.
        papers: only these; all where empty.

    Returns:
        The verdicts, and a line for each file that could not be read.

    Raises:
        UsageError: a folder is no store, a file of claims is wrong, or a paper is unknown.
    """
    claims = load(papers)
    collection = collect(stores)
    substitutes = {
        (suite, profile): what for suite in collection.suites for profile, what in about(suite).substitutes.items()
    }
    items = [item for suite in collection.suites.values() for item in suite]
    return judge(claims, items, substitutes), collection.problems
