"""What a suite's own file says about it: title, description, and what each profile reduces.

Only the text is read here. Checking and expanding a suite is the harness's, and loads torch and every plugin.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata, resources
from importlib.resources.abc import Traversable

GROUP = "snnbench.suites"
"""Entry-point group; a value is a package that holds ``*.toml``."""


@dataclass(frozen=True)
class About:
    """What a suite's file says.

    Args:
        title: one line; the suite's name where there is no file.
        description: what it measures.
        profiles: description by profile.
        substitutes: what a profile reduces against the published setting, by profile.
        sha256: of the file, None where there is none.
        problem: why nothing more is known.
    """

    title: str
    description: str = ""
    profiles: Mapping[str, str] = field(default_factory=dict)
    substitutes: Mapping[str, str] = field(default_factory=dict)
    sha256: str | None = None
    problem: str | None = None


def about(suite: str) -> About:
    """What the installed file of a suite says; a suite measured from a file elsewhere has only its name.

    Args:
        suite: its name.
    """
    file = next((f for point in metadata.entry_points(group=GROUP) for f in _files(point, suite)), None)
    if file is None:
        return About(suite, problem="no installed suite has this name, so its description is not known here")
    return parse(suite, file.read_bytes())


def parse(suite: str, data: bytes) -> About:
    """The same from a file's bytes.

    Args:
        suite: its name, where the file has no title.
        data: TOML.
    """
    try:
        table = tomllib.loads(data.decode())
        head, profiles = table["suite"], table.get("profiles", {})
        return About(
            title=str(head.get("title", suite)),
            description=" ".join(str(head.get("description", "")).split()),
            profiles={name: str(profile.get("description", "")) for name, profile in profiles.items()},
            substitutes={name: str(p["substitute"]) for name, p in profiles.items() if p.get("substitute")},
            sha256=hashlib.sha256(data).hexdigest(),
        )
    except (ValueError, KeyError, AttributeError) as error:
        return About(suite, problem=f"its file cannot be read: {error}")


def _files(point: metadata.EntryPoint, suite: str) -> list[Traversable]:
    try:
        package = resources.files(point.value)
    except ImportError:
        return []  # a broken plugin package is the harness's to report; here it only has no description
    return [file for file in package.iterdir() if file.name == f"{suite}.toml"]
