"""``snnbench list``: methods, models, data sets, suites and recipes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from harness.cli.table import print_table

KINDS = ("methods", "models", "datasets", "suites", "recipes")
COLUMNS = {
    "methods": ("name", "gradient", "model", "numerics", "paper", "summary"),
    "models": ("name", "source", "summary"),
    "datasets": ("name", "source", "variant", "summary"),
    "suites": ("name", "profiles", "title"),
    "recipes": ("name", "recipe", "published with", "source"),
}
RECONSTRUCTION = "*"


@click.command("list", short_help="Methods, models, data sets, suites and recipes.")
@click.argument("kind", type=click.Choice(KINDS), required=False)
def list_plugins(kind: str | None) -> None:
    """Show methods, models, data sets and suites with what each promises, and recipes with their source."""
    for number, each in enumerate([kind] if kind else KINDS):
        if kind is None:
            click.echo(f"{'' if number == 0 else chr(10)}{each.upper()}")
        _show(each)


def _show(kind: str) -> None:
    if kind in ("suites", "recipes"):
        print_table(COLUMNS[kind], _suites() if kind == "suites" else _recipes())
        return
    from harness import registry

    found = registry.entries(kind)
    usable = [entry.plugin for entry in found.values() if entry.plugin is not None]
    print_table(COLUMNS[kind], [_row(kind, plugin) for plugin in usable])
    if any(getattr(plugin, "reconstruction", False) for plugin in usable):
        click.echo(f"{RECONSTRUCTION} our reconstruction: the paper's own equations are not available")
    for entry in found.values():
        if entry.unavailable is not None:
            click.echo(f"unavailable: {entry.name} ({entry.distribution}): {entry.unavailable}")


def _row(kind: str, plugin: Any) -> list[str]:
    row = {key: str(getattr(plugin, key, "")) for key in COLUMNS[kind]}
    if getattr(plugin, "reconstruction", False):
        row["name"] += RECONSTRUCTION
    if kind == "datasets":
        row |= _data_facts(plugin)
    return list(row.values())


def _data_facts(plugin: Any) -> dict[str, str]:
    """Source and variant with default options; one that cannot be made like that says why."""
    try:
        info = plugin().info()
    except Exception as error:  # a plugin may refuse in any way, and must not take the others along
        return {"source": str(error), "variant": ""}
    return {"source": info.source, "variant": info.variant or ""}


def _suites() -> Iterator[list[str]]:
    from harness import suite

    for name in suite.names():
        found = suite.load(name)
        yield [name, ", ".join(found.profiles), found.title]


def _recipes() -> Iterator[list[str]]:
    from harness.suite import recipes

    for name in recipes.names():
        found = recipes.load(name, where="recipe")
        keys, with_ = found.recipe, found.published
        recipe = f"{keys.optimizer} lr={keys.lr:g}, {keys.schedule}, {keys.epochs} epochs"
        yield [name, recipe, f"{with_.data}, {with_.model}, T={with_.T}, batch {with_.batch}", found.source]
