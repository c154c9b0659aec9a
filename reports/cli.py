"""``snnbench report`` and ``snnbench claims``: pages and tables from stores of records."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click

from harness.cli.table import print_table
from reports import stamp

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
    """Write one self-contained HTML page a suite and an index; opened from disk, they fetch nothing.

    Where neither records nor code nor suites have changed since the pages were written, they stay as they are.
    """
    made_of = stamp.digest(stores, out, formats)
    written = stamp.unchanged(out, made_of)
    if written:
        click.echo("nothing has changed since these were written:", err=True)
    else:
        written = _write(stores, out, formats, made_of)
    for path in written:
        click.echo(str(path))
    if show:
        webbrowser.open(written[0].resolve().as_uri())


def _write(stores: tuple[Path, ...], out: Path, formats: tuple[str, ...], made_of: str) -> list[Path]:
    """Collect, write and leave a stamp; unreadable records are told every time, so they leave none."""
    from reports.collect import collect  # pandas and seaborn take long to import, and --help has no use for them
    from reports.write import write

    collection = collect(stores)
    for problem in collection.problems:
        click.echo(f"unreadable record: {problem}", err=True)
    written = write(collection, out, formats)
    if not collection.problems:
        stamp.keep(out, made_of, written)
    return written


@click.command(short_help="What the papers claim, beside what was predicted and measured here.")
@click.option(
    "--store", "stores", metavar="DIR", type=FOLDER, multiple=True, default=(STORE,), show_default=True,
    help="Folder of records. Give it again for several.",
)  # fmt: skip
@click.option(
    "--paper", "papers", metavar="NAME", multiple=True, help="Only this paper's claims. Give it again for more."
)
@click.option("--format", "form", type=click.Choice(["table", "csv", "md"]), default="table", show_default=True)
@click.option("--all", "everything", is_flag=True, help="Also claims that no cell of the stores belongs to.")
def claims(stores: tuple[Path, ...], papers: tuple[str, ...], form: str, everything: bool) -> None:
    """Give a verdict on every published claim: reproduced, differs, not reproduced, not comparable, not run.

    Predictions and measurements are judged separately. CSV and Markdown hold all claims.
    """
    from reports.claims.command import judged_of
    from reports.claims.table import counts, csv_text, markdown, terminal

    judged, problems = judged_of(stores, papers)
    for problem in problems:
        click.echo(f"unreadable record: {problem}", err=True)
    if form != "table":
        click.echo({"csv": csv_text, "md": markdown}[form](judged), nl=False)
        return
    told = [each for each in judged if everything or each.predicted.match or each.measured.match]
    heads, rows, notes = terminal(told)
    print_table(heads, rows)
    for line in (*notes, counts(judged)):
        click.echo(line)
    if len(told) < len(judged):
        click.echo(f"not shown: {len(judged) - len(told)} claims that no cell here belongs to (--all shows them)")
