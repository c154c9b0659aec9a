"""``snnbench bench``: every method on a model of one's own."""

from __future__ import annotations

import shlex
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.options import words
from harness.cli.table import print_table

if TYPE_CHECKING:
    from harness.plan.benching import Measured

STORE = Path("results/bench")
OUT = Path("reports/html")


@click.command(short_help="Measure every method on a model of your own.")
@click.argument("factory", metavar="MODULE:FACTORY")
@click.option("--input", "shape", metavar="T,N,C,H,W", required=True, help="Time steps, batch, shape of one step.")
@click.option("--classes", metavar="K", type=click.IntRange(min=1), help="Number of classes. Default: the model tells.")
@click.option("--methods", metavar="A,B", multiple=True, callback=words, help="Only these; options as a:key=value.")
@click.option("--stages", metavar="PATTERN", help="Globs of module names, with commas: each such module is one stage.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda where there is one.")
@click.option(
    "--precision", type=click.Choice(["fp32", "tf32", "amp-bf16", "amp-fp16"]), default="fp32", show_default=True,
    help="Arithmetic.",
)  # fmt: skip
@click.option(
    "--loss", type=click.Choice(["per_step", "time_mean"]), default="per_step", show_default=True, help="Loss."
)
@click.option(
    "--store", metavar="DIR", type=click.Path(path_type=Path), default=STORE, show_default=True, help="Of the records."
)
@click.option(
    "--out", metavar="DIR", type=click.Path(path_type=Path), default=OUT, show_default=True, help="Of the report."
)
@click.option(
    "--timeout", metavar="S", type=click.FloatRange(min=0, min_open=True), default=600.0, show_default=True,
    help="Limit of a method in seconds.",
)  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="CPU cells at the same time.")
@click.pass_context
def bench(
    ctx: click.Context,
    factory: str,
    shape: str,
    classes: int | None,
    methods: frozenset[str],
    stages: str | None,
    device: str | None,
    precision: str,
    loss: str,
    store: Path,
    out: Path,
    timeout: float,
    jobs: int,
) -> None:
    """Measure memory, time and gradient of every method on the model that MODULE:FACTORY makes.

    The module is imported from the current folder; the factory takes nothing and gives a torch.nn.Module. No
    registration is needed. Input is noise: nothing is said about accuracy.
    """
    from rich.console import Console

    from harness.cli import INTERRUPTED_EXIT_CODE
    from harness.executors.devices import cuda_present
    from harness.plan.benching import Request
    from harness.plan.benching import bench as measure
    from harness.plan.size import parse_shape
    from harness.run.interrupt import StoppedError

    request = Request(
        factory=factory,
        input=parse_shape(shape, "--input", "T,N,C,H,W"),
        store=store,
        classes=classes,
        methods=tuple(sorted(methods)),
        stages=stages,
        device=device or ("cuda" if cuda_present() else "cpu"),
        precision=precision,
        loss=loss,
        timeout_s=timeout,
        jobs=jobs,
    )
    try:
        found = measure(request, Console())
    except (StoppedError, KeyboardInterrupt):
        click.echo(f"snnbench: stopped. What was measured is in {store}", err=True)
        ctx.exit(INTERRUPTED_EXIT_CODE)
    show(found)
    _report(store, out)
    ctx.exit(found.result.exit_code(strict=False))


def show(found: Measured) -> None:
    """Print what was measured and what was left out."""
    from harness.plan.benching import COLUMNS

    for note in found.notes:
        click.echo(f"model: {note}")
    print_table(COLUMNS, found.table())
    for line in found.left_out():
        click.echo(line)
    click.echo("Step times are paired ratios to the baseline that is named; the input is noise.")
    click.echo(f"records: {found.store}")


def _report(store: Path, out: Path) -> None:
    """Have the report written by whoever registered the command; without one, say how to get it later."""
    point = next(iter(metadata.entry_points(group="snnbench.commands", name="report")), None)
    if point is None:
        click.echo(f"no report: no installed package has the command; the records are in {shlex.quote(str(store))}")
        return
    click.echo("report:")
    point.load().main(["--store", str(store), "--out", str(out)], standalone_mode=False)
