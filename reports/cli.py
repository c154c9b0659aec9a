"""``snnbench report``: pages and tables from stores of records."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click

STORE = Path("results/local")
"""Where ``snnbench run`` writes unless it is told otherwise."""
OUT = Path("reports/html")
FORMATS = ("html", "csv", "md", "latex")
FOLDER = click.Path(path_type=Path)


def _formats(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    """Formats from ``a,b``, each once."""
    words = tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))
    wrong = [word for word in words if word not in FORMATS]
    if wrong or not words:
        raise click.BadParameter(f"{', '.join(map(repr, wrong)) or 'none given'}. Allowed: {', '.join(FORMATS)}")
    return words


@click.command(short_help="Pages and tables from stores of records.")
@click.option(
    "--store", "stores", metavar="DIR", type=FOLDER, multiple=True, default=(STORE,), show_default=True,
    help="Folder of records. Give it again for several.",
)  # fmt: skip
@click.option("--out", metavar="DIR", type=FOLDER, default=OUT, show_default=True, help="Folder of the reports.")
@click.option("--open", "show", is_flag=True, help="Open the index (or the first file) in the browser.")
@click.option(
    "--format", "formats", metavar="F,F", default="html", show_default=True, callback=_formats,
    help=f"Of {', '.join(FORMATS)}.",
)  # fmt: skip
def report(stores: tuple[Path, ...], out: Path, show: bool, formats: tuple[str, ...]) -> None:
    """Write one self-contained HTML page a suite and an index; opened from disk, they fetch nothing."""
    from reports.collect import collect  # pandas and seaborn take long to import, and --help has no use for them
    from reports.write import write

    collection = collect(stores)
    for problem in collection.problems:
        click.echo(f"unreadable record: {problem}", err=True)
    written = write(collection, out, formats)
    for path in written:
        click.echo(str(path))
    if show:
        webbrowser.open(written[0].resolve().as_uri())
