"""``snnbench results``: export, merge and verify stores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.options import store_option

if TYPE_CHECKING:
    from harness.store import Store

FOLDER = click.Path(path_type=Path)


@click.group(short_help="Export, merge and verify stores.")
def results() -> None:
    """Export, merge and verify stores of records."""


@results.command()
@click.argument("dest", type=FOLDER)
@store_option
@click.option("--suite", help="Only this suite's records.")
@click.option("--all-runs", is_flag=True, help="Also runs that a later one has replaced.")
def export(dest: Path, store: Path, suite: str | None, all_runs: bool) -> None:
    """Write one row a record to DEST (.parquet or .csv)."""
    opened = _existing(store)
    table = opened.frame(suite, all_runs)
    from harness.store.frame import export as write

    click.echo(f"{len(table)} rows: {write(table, dest)}")
    for damaged in opened.damaged:
        click.echo(f"damaged record: {damaged}", err=True)


@results.command()
@click.argument("sources", metavar="DIR...", nargs=-1, required=True, type=FOLDER)
@store_option
@click.pass_context
def merge(ctx: click.Context, sources: tuple[Path, ...], store: Path) -> None:
    """Copy the records of other stores into --store, by run id; nothing is overwritten."""
    from harness.store import Store
    from harness.store.merge import merge as bring

    merged = bring(Store(store), sources)
    click.echo(f"{len(merged.copied)} records copied, {merged.skipped} were there already")
    for problem in [*merged.conflicts, *merged.damaged]:
        click.echo(f"snnbench: {problem}", err=True)
    ctx.exit(1 if merged.conflicts or merged.damaged else 0)


@results.command()
@store_option
@click.pass_context
def verify(ctx: click.Context, store: Path) -> None:
    """Check every record's hash, schema, name and series; exit code 1 when something is wrong."""
    from harness.store.verify import verify as examine

    opened = _existing(store)
    problems = examine(opened)
    for problem in problems:
        click.echo(str(problem))
    click.echo(f"{len(opened.files())} records, {len(problems)} problems")
    ctx.exit(1 if problems else 0)


def _existing(store: Path) -> Store:
    from harness.errors import UsageError
    from harness.store import Store

    if not store.is_dir():
        raise UsageError(f"--store {store}: no such folder")
    return Store(store)
