"""Tables as the commands print them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

WIDE = 1000
"""Width in characters of a table that goes to a file or a pipe: nothing is cut."""


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table as wide as the terminal, or in full where the output is no terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold")  # an id that is cut cannot be copied
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    with console.capture() as text:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in text.get().splitlines()))
