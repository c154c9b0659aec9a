"""``snnbench doctor``: what works here."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.options import store_option


@click.command(short_help="What works on this machine.")
@store_option
def doctor(store: Path) -> None:
    """Look at Python, torch, CUDA, the data folder and the rest, and say what each missing thing means."""
    from harness.diagnosis import examine

    for finding in examine(store):
        click.echo(f"{finding.state:<8} {finding.name}: {finding.detail}")
        if finding.meaning:
            click.echo(f"{'':<8} -> {finding.meaning}")
