"""``snnbench reproduce``: measure a record's cell again and compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.options import store_option

if TYPE_CHECKING:
    from harness.run.reproduce import Comparison, Difference

SHOWN = 20
"""So many differences are shown of each sort; the records hold all."""


@click.command(short_help="Measure a record's cell again and compare.")
@click.argument("record", type=click.Path(path_type=Path))
@store_option
@click.option(
    "--timeout", metavar="S", type=click.FloatRange(min=0, min_open=True), default=3600.0, show_default=True,
    help="Limit in seconds.",
)  # fmt: skip
@click.pass_context
def reproduce(ctx: click.Context, record: Path, store: Path, timeout: float) -> None:
    """Measure the cell of a RECORD file again and compare; exit code 1 when a number that should repeat does not."""
    from harness.cli import INTERRUPTED_EXIT_CODE
    from harness.run.interrupt import Interrupt, StoppedError
    from harness.run.labels import cell_label
    from harness.run.reproduce import compare, load_record, repeat
    from harness.store import Store

    before = load_record(record)
    click.echo(cell_label(before.spec))
    try:
        with Interrupt() as interrupt:
            path = repeat(before, Store(store), timeout, interrupt)
    except StoppedError:
        click.echo("snnbench: stopped; no record was written", err=True)
        ctx.exit(INTERRUPTED_EXIT_CODE)
    comparison = compare(before, load_record(path))
    _tell(comparison)
    click.echo(f"new record: {path}")
    ctx.exit(1 if comparison.different else 0)


def _tell(comparison: Comparison) -> None:
    total = comparison.equal + len(comparison.different)
    click.echo(f"{comparison.equal} of {total} values that should repeat are equal")
    _list("differ", comparison.different)
    _list("times (these vary)", comparison.timing)
    if comparison.same_fingerprint:
        click.echo("same code, environment and device (equal fingerprints)")
    else:
        click.echo("code, environment or device differ: the records are not comparable as runs of one setting")
    _list("origin", comparison.origin)


def _list(title: str, differences: list[Difference]) -> None:
    if differences:
        click.echo(f"{title}:")
    for difference in differences[:SHOWN]:
        click.echo(f"  {difference}")
    if len(differences) > SHOWN:
        click.echo(f"  ... and {len(differences) - SHOWN} more")
