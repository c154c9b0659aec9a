"""``snnbench run``: measure the cells of a suite that are not finished."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.options import selection_options, store_option, words

if TYPE_CHECKING:
    from harness.run.session import RunResult
    from harness.run.todo import RunOptions, Selection


@click.command(short_help="Measure the cells of a suite that are not finished.")
@click.argument("suite")
@selection_options
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="CPU cells at the same time.")
@click.option("--executor", type=click.Choice(["local"]), default="local", show_default=True, help="Where cells run.")
@store_option
@click.option("--fresh", is_flag=True, help="Measure finished cells again, too.")
@click.option(
    "--retry",
    metavar="STATUS,...",
    multiple=True,
    callback=words,
    help="Measure cells again whose latest run ended like this (oom, error, ...), or that are stale.",
)
@click.option("--dry-run", is_flag=True, help="Show the cells, their number and how long they would take.")
@click.option("--timeout", metavar="S", type=click.FloatRange(min=0, min_open=True), help="Limit of a cell in seconds.")
@click.option("--strict", is_flag=True, help="Refuse to time on a disturbed machine; unavailable cells are failures.")
@click.option("--snapshot", is_flag=True, help="On CUDA: a snapshot of the allocator beside each record (memory_viz).")
@click.option("--order-seed", type=click.IntRange(min=0), help="Of the cells' order; drawn and recorded by default.")
@click.pass_context
def run(
    ctx: click.Context,
    suite: str,
    profile: str | None,
    only: tuple[str, ...],
    jobs: int,
    executor: str,
    store: Path,
    fresh: bool,
    retry: frozenset[str],
    dry_run: bool,
    timeout: float | None,
    strict: bool,
    snapshot: bool,
    order_seed: int | None,
) -> None:
    """Measure the cells of SUITE (a name, or a path to a .toml file) that are not finished.

    Every finished cell's record is in the store at once; the same command again goes on where it was stopped.
    """
    from harness.run.todo import RunOptions
    from harness.suite.selection import parse_only

    options = RunOptions(
        suite, store, None, parse_only(only), jobs, fresh, retry, timeout, strict, order_seed, snapshot=snapshot
    )
    each = [replace(options, profile=name) for name in profiles_of(profile)]
    if dry_run:
        for one in each:
            show(one)
        return
    ctx.exit(_run(each))


def profiles_of(given: str | None) -> list[str | None]:
    """``"predict,cpu"`` as a list; None stands for the default profile."""
    names = [name.strip() for name in (given or "").split(",") if name.strip()]
    return list(dict.fromkeys(names)) or [None]


def _run(each: Sequence[RunOptions]) -> int:
    """Run the profiles one after the other; what they do is said before the first begins."""
    from rich.console import Console

    from harness.cli import INTERRUPTED_EXIT_CODE
    from harness.executors.server import ForkServer
    from harness.run.interrupt import StoppedError
    from harness.run.session import measure
    from harness.run.summary import first_lines
    from harness.run.todo import select
    from harness.store import Store

    Store(each[0].store).check_writable()
    selections = [select(options) for options in each]
    server, code = ForkServer(), 0
    if any(selection.todo for selection in selections):
        server.begin()  # it imports while this process looks for data; nothing to run needs no processes
    click.echo("\n".join(first_lines(selections)))
    try:
        for options, selection in zip(each, selections, strict=True):
            result = measure(options, selection, server, Console())
            tell(options, result)
            code = max(code, result.exit_code(options.strict))
    except (StoppedError, KeyboardInterrupt):
        store = each[0].store
        click.echo(f"snnbench: stopped. Finished cells are in {store}. To go on: {resume_command()}", err=True)
        return INTERRUPTED_EXIT_CODE
    finally:
        server.stop()
    return code


def resume_command() -> str:
    """The command line that goes on; ``--fresh`` would begin again."""
    return shlex.join(["snnbench", *[word for word in sys.argv[1:] if word != "--fresh"]])


def tell(options: RunOptions, result: RunResult) -> None:
    """Counts, where the records are, and what to do with them."""
    click.echo(f"{count_line(result.counts)}; {result.measured} measured now (order seed {result.order_seed})")
    click.echo(f"records: {options.store}  report: snnbench report --store {shlex.quote(str(options.store))}")


def count_line(counts: Counter[str]) -> str:
    """``57 cells: 50 ok, 7 oom``."""
    parts = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    return f"{counts.total()} cells" + (f": {parts}" if parts else "")


def show(options: RunOptions) -> None:
    """The dry run: every cell with what would become of it, and how long it takes."""
    from harness.run.labels import cell_label
    from harness.run.todo import history, select

    selection = select(options)
    known = history(options, selection)
    todo = {cell.hash for cell in selection.todo}
    for cell in selection.cells:
        word = "run" if cell.hash in todo else selection.finished[cell.hash].status
        click.echo(f"{word:<11} {cell.hash} {cell_label(cell)}")
    finished = len(selection.cells) - len(todo)
    click.echo(
        f"{selection.suite.name}, profile {selection.profile}: {len(selection.cells)} cells, {finished} finished, "
        f"{len(todo)} to run; {time_needed(options, selection, known)}"
    )


def time_needed(options: RunOptions, selection: Selection, known: dict[str, float]) -> str:
    """How long the cells take, as far as earlier records tell."""
    from harness.run.progress import duration

    total = len(selection.todo)
    if not total:
        return "nothing to do"
    if not known:
        return "time needed: unknown (no earlier records)"
    seconds = duration(sum(known.values()) / options.jobs)
    if len(known) < total:
        return f"time needed: at least {seconds} ({len(known)} of {total} cells have earlier records)"
    return f"time needed: about {seconds}"
