"""``snnbench data``: which data sets are here, and how the others get here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from harness.cli.table import print_table

COLUMNS = ("name", "state", "size", "where", "what it means")
USABLE = ("embedded", "present", "variant")


@click.group(short_help="Data sets: what is here, and how to get the rest.")
def data() -> None:
    """Data sets: what is here, and how to get the rest.

    They live under $SNNBENCH_DATA, by default ~/.cache/snnbench, in the layouts of torchvision and tonic.
    """


allow_variant_option = click.option(
    "--allow-variant", is_flag=True, help="Accept files that are not the published ones, or are a part of them."
)


@data.command(short_help="Which data sets are here.")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@allow_variant_option
def status(names: tuple[str, ...], allow_variant: bool) -> None:
    """Show for each data set whether its files are here and whole, and which file goes where.

    Files are compared with the checksums of torchvision and tonic. Nothing is downloaded or deleted.
    """
    from harness import registry

    rows = [[name, *_status(name, allow_variant)] for name in names or registry.entries("datasets")]
    print_table(COLUMNS, rows)


@data.command(short_help="Download a data set.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@allow_variant_option
@click.pass_context
def fetch(ctx: click.Context, names: tuple[str, ...], allow_variant: bool) -> None:
    """Download what is missing, verify and unpack it.

    Where that is not possible the message says which file from where goes into which folder, and the exit code is 1.
    """
    failed = [name for name in names if not _fetch(name, allow_variant)]
    ctx.exit(1 if failed else 0)


def _status(name: str, allow_variant: bool) -> list[str]:
    from harness.contracts import Unavailable

    try:
        found = _source(name, allow_variant).status()
    except Unavailable as error:  # the plugin itself cannot be used
        return ["unavailable", "-", "-", str(error)]
    return [found.state, _size(found.size), found.where or "-", found.detail]


def _fetch(name: str, allow_variant: bool) -> bool:
    from harness.contracts import Unavailable

    try:
        source = _source(name, allow_variant)
        source.fetch()
    except Unavailable as error:
        click.echo(f"{name}: {error}" if not str(error).startswith(f"{name}:") else str(error), err=True)
        return False
    found = source.status()
    click.echo(f"{name}: {found.state}, {found.where or found.detail}")
    return found.state in USABLE


def _source(name: str, allow_variant: bool) -> Any:
    """The data set with default options; with ``allow_variant`` where it has such an option.

    Raises:
        UsageError: no data set has this name.
        Unavailable: the plugin cannot be used.
    """
    from harness import registry

    plugin = registry.plugin("datasets", name, "snnbench data")
    options = {"allow_variant": True} if allow_variant and "allow_variant" in plugin.options.model_fields else {}
    required = [key for key, field in plugin.options.model_fields.items() if field.is_required()]
    if required:
        return _Generated(required)
    return registry.create("datasets", registry.complete("datasets", name, options, "snnbench data"))


class _Generated:
    """Stands for a data set that cannot be made without options, and so is none of files.

    Args:
        required: the options.
    """

    def __init__(self, required: Iterable[str]) -> None:
        self.required = ", ".join(required)

    def status(self) -> Any:
        """See :meth:`harness.contracts.DataSource.status`."""
        from harness.contracts import DataStatus

        return DataStatus("embedded", f"generated from its options ({self.required})")

    def fetch(self) -> None:
        """There is nothing to fetch."""


def _size(count: int | None) -> str:
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
