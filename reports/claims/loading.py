"""Claims: TOML files in the folder ``claims`` of every package that offers suites."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from importlib.resources.abc import Traversable

from pydantic import ValidationError

from harness.errors import UsageError, unknown
from harness.validation import usage_error
from reports.claims.schema import BYTE_UNITS, ClaimEntry, ClaimFile, Paper, Setting

GROUP = "snnbench.suites"
"""Entry-point group; a value is a package that may hold ``claims/*.toml``."""
FOLDER = "claims"
SCALE = {"fraction": 1.0, "ratio": 1.0, "%": 0.01, "pp": 0.01, "samples/s": 1.0, "ms": 1e-3, "s": 1.0, "h": 3600.0}
"""What one unit of a value is in the store's units (fractions, seconds, samples per second)."""


@dataclass(frozen=True)
class Claim:
    """One figure of a paper with its conditions.

    Args:
        paper: where it stands.
        entry: the figure.
        setting: conditions; what is None is unknown.
    """

    paper: Paper
    entry: ClaimEntry
    setting: Setting

    @property
    def id(self) -> str:
        """``paper/claim``, unique."""
        return f"{self.paper.name}/{self.entry.id}"

    @property
    def readings(self) -> dict[str, float]:
        """The value in the store's units, by reading of its unit: one, or two where the unit is unknown."""
        entry = self.entry
        if entry.unit in BYTE_UNITS:
            return {name: entry.value * size for name, size in BYTE_UNITS[entry.unit].items()}
        return {entry.unit: entry.value * SCALE[entry.unit]}


def load(papers: Sequence[str] = ()) -> list[Claim]:
    """The claims of all installed files, in the files' order.

    Args:
        papers: names of papers to keep; all where empty.

    Raises:
        UsageError: a file is wrong (the message names file, key and allowed values), two papers share a name, or no
            paper has a name that was asked for.
    """
    found: dict[str, list[Claim]] = {}
    origin: dict[str, str] = {}
    for file in files():
        claims = parse(file.read_bytes(), str(file))
        name = claims[0].paper.name
        if name in found:
            raise UsageError(f"{file}: paper.name: {name!r} is the name of {origin[name]} already; rename one of them")
        found[name], origin[name] = claims, str(file)
    for paper in papers:
        if paper not in found:
            raise unknown("paper", paper, found, where="--paper")
    return [claim for name in (papers or found) for claim in found[name]]


def parse(data: bytes, file: str) -> list[Claim]:
    """The claims of one file.

    Args:
        data: TOML, UTF-8.
        file: what errors call it.

    Raises:
        UsageError: as :func:`load`.
    """
    try:
        table = tomllib.loads(data.decode("utf-8-sig"))
    except ValueError as error:  # not UTF-8, or not TOML
        raise UsageError(f"{file}: not valid TOML: {error}") from None
    try:
        content = ClaimFile.model_validate(table, strict=True)
    except ValidationError as error:
        raise usage_error(error, ClaimFile, file) from None
    unknown_setting = Setting()
    return [
        Claim(content.paper, entry, content.settings[entry.setting] if entry.setting else unknown_setting)
        for entry in content.claim
    ]


def files() -> Iterator[Traversable]:
    """Every installed package's ``claims/*.toml``."""
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        try:
            folder = resources.files(point.value) / FOLDER
        except ImportError:
            continue  # a broken plugin package is the harness's to report; here it only has no claims
        if folder.is_dir():
            yield from sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
