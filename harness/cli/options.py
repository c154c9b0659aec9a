"""Options that several commands share, and tables as they print them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_STORE = Path("results/local")

WIDE = 1000
"""Width in characters of a table that goes to a file or a pipe: nothing is cut."""


def store_option(command: Command) -> Command:
    """``--store DIR``."""
    return click.option(
        "--store",
        metavar="DIR",
        type=click.Path(path_type=Path),
        default=DEFAULT_STORE,
        show_default=True,
        help="Folder of the records.",
    )(command)


def selection_options(command: Command) -> Command:
    """``--profile P`` and ``--only axis=a,b``."""
    only = click.option(
        "--only",
        metavar="AXIS=A,B",
        multiple=True,
        help="Only cells with one of these values, e.g. method=bptt,sltt or T=4. Give it again for another axis.",
    )
    profile = click.option(
        "--profile",
        metavar="P",
        help="Sizes to run with; run takes several, P,P. Default: gpu where there is a CUDA device and the suite has it, "
        "else its first.",
    )
    return profile(only(command))


def words(_: click.Context, __: click.Parameter, values: Sequence[str]) -> frozenset[str]:
    """Callback of an option that takes ``a,b`` and can be repeated."""
    return frozenset(word.strip() for value in values for word in value.split(",") if word.strip())


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table as wide as the terminal, or in full where the output is no terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    table = Table(*headers, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    with console.capture() as text:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in text.get().splitlines()))
