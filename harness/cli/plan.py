"""``snnbench plan``: which method lets a model train within a memory budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.options import DEFAULT_STORE
from harness.cli.table import print_table

if TYPE_CHECKING:
    from harness.plan.answer import Answer

BUDGET = "24GiB"
"""Where neither a budget nor hardware tells the memory."""
LEGEND = """\
Nothing ran: peaks are the ledger's under fake tensors. Slow-downs are against BPTT and, unless marked measured,
estimates from the operators' FLOPs and bytes. ~: read off a line through two predictions; +: or more."""


def _split(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    return tuple(word.strip() for value in values for word in value.split(",") if word.strip())


@click.command(short_help="Which method lets a model train within a memory budget.")
@click.option("--model", metavar="M", required=True, help="A model's name, or module:factory for one of your own.")
@click.option("--model-option", "model_options", metavar="K=V", multiple=True, help="An option of the model.")
@click.option("--dataset", metavar="D", help="A data set's name; its options follow after colons: D:key=value.")
@click.option("--input", "shape", metavar="C,H,W", help="Shape of one time step of one sample, in place of a data set.")
@click.option("--classes", metavar="K", type=click.IntRange(min=1), help="Number of classes, with --input.")
@click.option("-T", "steps", metavar="T", type=click.IntRange(min=1), default=4, show_default=True, help="Time steps.")
@click.option("--batch", metavar="N", type=click.IntRange(min=1), default=32, show_default=True, help="Batch size.")
@click.option(
    "--precision", type=click.Choice(["fp32", "tf32", "amp-bf16", "amp-fp16"]), default="fp32", show_default=True,
    help="Arithmetic.",
)  # fmt: skip
@click.option(
    "--optimizer", type=click.Choice(["sgd", "adam", "adamw"]), default="sgd", show_default=True,
    help="Its state takes memory.",
)  # fmt: skip
@click.option(
    "--loss", type=click.Choice(["per_step", "time_mean"]), default="per_step", show_default=True, help="Loss."
)
@click.option(
    "--hardware", metavar="NAME",
    help="Weigh the estimated slow-downs as those of this hardware, e.g. rtx-4090 or cpu; nothing runs there. "
    "Default: a100-40gb.",
)  # fmt: skip
@click.option(
    "--budget", metavar="SIZE", help=f"The device's memory. Default: that of --hardware, otherwise {BUDGET}."
)  # fmt: skip
@click.option(
    "--reserve", metavar="SIZE",
    help="Part of the budget for CUDA context, workspaces and fragmentation. Default: 768 MiB and 5 % of the budget.",
)  # fmt: skip
@click.option("--methods", metavar="A,B", multiple=True, callback=_split, help="Only these; options as a:key=value.")
@click.option(
    "--store", metavar="DIR", type=click.Path(path_type=Path), help=f"Records with evidence. Default: {DEFAULT_STORE}."
)
@click.option("--jobs", type=click.IntRange(min=1), help="Predictions at the same time. Default: one a core.")
@click.option(
    "--timeout", metavar="S", type=click.FloatRange(min=0, min_open=True), default=300.0, show_default=True,
    help="Limit of a method in seconds.",
)  # fmt: skip
def plan(
    model: str,
    model_options: tuple[str, ...],
    dataset: str | None,
    shape: str | None,
    classes: int | None,
    steps: int,
    batch: int,
    precision: str,
    optimizer: str,
    loss: str,
    hardware: str | None,
    budget: str | None,
    reserve: str | None,
    methods: tuple[str, ...],
    store: Path | None,
    jobs: int | None,
    timeout: float,
) -> None:
    """Predict every method's memory on a model, without a GPU and without running it, and recommend one."""
    from harness.executors.server import ForkServer

    server = ForkServer()
    server.begin()  # it imports while this process does
    try:
        from harness.errors import UsageError
        from harness.plan import pool
        from harness.plan.candidates import options_of
        from harness.plan.hardware import named
        from harness.plan.planning import Question, answer
        from harness.plan.size import Budget, parse_shape

        if dataset is not None and shape is not None:
            raise UsageError("--dataset, --input: give one of them")
        weighed = named(hardware, "--hardware") if hardware is not None else None
        memory = budget or (weighed and weighed.memory_bytes) or BUDGET
        name, options = model, options_of(model_options, "--model-option")
        if ":" in model:
            from harness.plan.loading import import_here

            import_here()
            name, options = "user", {"factory": model, **options}
        data, *data_options = (dataset or "").split(":")
        question = Question(
            model=name,
            budget=Budget.of(memory, reserve),
            model_options=options,
            data=(data, options_of(data_options, "--dataset")) if dataset else None,
            sample=parse_shape(shape, "--input", "C,H,W") if shape else None,
            classes=classes,
            T=steps,
            batch=batch,
            precision=precision,
            optimizer=optimizer,
            loss=loss,
            methods=methods,
            store=store or (DEFAULT_STORE if DEFAULT_STORE.is_dir() else None),
            jobs=jobs or pool.cores(),
            timeout_s=timeout,
            hardware=weighed,
        )
        show(answer(question, server))
    finally:
        server.stop()


def show(found: Answer) -> None:
    """Print the sorted answer."""
    from harness.plan.answer import COLUMNS

    for line in found.lines():
        click.echo(line)
    print_table(COLUMNS, found.table())
    for line in found.left_out():
        click.echo(line)
    click.echo(LEGEND)
    click.echo(found.why)
