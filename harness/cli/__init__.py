"""The command line: ``snnbench``.

A command lives in a module of its own that imports click and nothing heavy before it runs, so ``--help`` is quick.
Other packages add commands through the entry-point group ``snnbench.commands``; the value is a click command.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

import click

from harness.errors import UsageError

GROUP = "snnbench.commands"
COMMANDS = {
    "list": "harness.cli.listing:list_plugins",
    "run": "harness.cli.run:run",
    "status": "harness.cli.status:status",
    "plan": "harness.cli.plan:plan",
    "bench": "harness.cli.bench:bench",
    "reproduce": "harness.cli.reproduce:reproduce",
    "compare": "harness.cli.compare:compare",
    "check": "harness.cli.check:check",
    "doctor": "harness.cli.doctor:doctor",
    "data": "harness.cli.data:data",
    "results": "harness.cli.results:results",
}
INTERRUPTED_EXIT_CODE = 130
"""128 + SIGINT, as shells report it."""


class Commands(click.Group):
    """Built-in commands and those of other packages, imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of :data:`COMMANDS`, then the others'."""
        return [*COMMANDS, *sorted(_registered().keys() - COMMANDS.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One command; one that cannot be imported says why when it is called."""
        if cmd_name in COMMANDS:
            module, _, name = COMMANDS[cmd_name].partition(":")
            return getattr(importlib.import_module(module), name)
        point = _registered().get(cmd_name)
        return None if point is None else _load(point)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a user's mistake is one line and exit code 2, Ctrl-C is exit code 130."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            click.echo(f"snnbench: {error}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("snnbench: stopped", err=True)
            ctx.exit(INTERRUPTED_EXIT_CODE)


def _registered() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=GROUP)}


def _load(point: metadata.EntryPoint) -> click.Command:
    try:
        command = point.load()
    except Exception as error:
        reason = f"{point.value} cannot be imported: {type(error).__name__}: {error}"
    else:
        if isinstance(command, click.Command):
            return command
        reason = f"{point.value} is no click command"
    return _unavailable(point.name, reason)


def _unavailable(name: str, reason: str) -> click.Command:
    def refuse(**_: object) -> None:
        raise UsageError(f"{name}: {reason}")

    settings = {"ignore_unknown_options": True}
    arguments = click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)
    return click.Command(name, callback=refuse, params=[arguments], help=reason, context_settings=settings)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="snnbench", prog_name="snnbench")
def snnbench() -> None:
    """What does it really cost to train a spiking network, and which way of training it should I use?"""


def main() -> None:
    """Entry point of the console script and of ``python -m harness``."""
    snnbench(prog_name="snnbench")
