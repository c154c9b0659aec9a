"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_STORE = Path("results/local")


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
