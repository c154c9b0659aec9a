"""``snnbench status``: how far a suite is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from harness.cli.options import selection_options, store_option
from harness.cli.table import print_table


@click.command(short_help="How far a suite is.")
@click.argument("suite")
@selection_options
@store_option
def status(suite: str, profile: str | None, only: tuple[str, ...], store: Path) -> None:
    """Count the cells of SUITE by how their latest run ended; stale and missing ones, too."""
    from harness.run.cellclaims import Claims
    from harness.run.todo import RunOptions, select, stale
    from harness.suite import load
    from harness.suite.selection import parse_only

    given = parse_only(only)
    rows = []
    for name in [profile] if profile else load(suite).profiles:
        selection = select(RunOptions(suite, store, name, given))
        counts = Counter[str](latest.status for latest in selection.finished.values())
        running = sum(Claims(store).holder(cell.hash) is not None for cell in selection.cells)
        old = len(stale(selection.finished, selection.sizes, selection.cells))
        missing = len(selection.cells) - len(selection.finished)
        statuses = ", ".join(f"{count} {word}" for word, count in counts.most_common())
        rows.append([name, str(len(selection.cells)), statuses or "-", str(old), str(missing), str(running)])
        for problem in selection.problems:
            click.echo(f"damaged record: {problem}", err=True)
    print_table(["profile", "cells", "latest runs", "stale", "missing", "running"], rows)
