"""Suites: TOML files that say what is measured, found by path or, built-in and third-party ones, by name."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

from pydantic import ValidationError

from harness.errors import UsageError, unknown
from harness.spec import CellSpec
from harness.suite.expansion import candidates
from harness.suite.installed import toml_files
from harness.suite.schema import Profile, SuiteFile
from harness.suite.selection import select
from harness.validation import usage_error


@dataclass(frozen=True)
class Suite:
    """A suite as read from its file.

    Args:
        name: names the folder in a store.
        title: one line for people.
        description: what it measures.
        file: where it came from, for messages.
        sha256: of the file's bytes, 64 hex digits.
        content: the checked file.
    """

    name: str
    title: str
    description: str
    file: str
    sha256: str
    content: SuiteFile

    @property
    def profiles(self) -> dict[str, Profile]:
        """Device, threads, time limit and declared substitutions, by name."""
        return self.content.profiles

    def profile(self, name: str) -> Profile:
        """One profile.

        Raises:
            UsageError: the suite has no such profile.
        """
        if name not in self.profiles:
            raise unknown("profile", name, self.profiles, where=self.file)
        return self.profiles[name]

    def expand(self, profile: str, only: dict[str, list[str]] | None = None) -> list[CellSpec]:
        """The cells of a profile, each once, in the file's order.

        Args:
            profile: its name.
            only: keep cells with one of these values on each of these axes (:data:`harness.suite.selection.AXES`).

        Raises:
            UsageError: unknown profile, plugin, option, axis or value, or nothing is left.
        """
        self.profile(profile)
        found = candidates(self.file, self.content, profile)
        if only:
            found = select(found, only, where=f"{self.name} (profile {profile})")
        return list({c.spec.hash: c.spec for c in found}.values())


def names() -> dict[str, Traversable]:
    """Files of all installed suites by name, sorted.

    Raises:
        UsageError: two packages hold a suite of the same name, or a package cannot be imported.
    """
    return toml_files("suite")


def load(path_or_name: str | Path) -> Suite:
    """Read a suite.

    Args:
        path_or_name: a path that ends in ``.toml``, or an installed suite's name.

    Raises:
        UsageError: no such suite, or the file is wrong: the message names file, key, given and allowed values.
    """
    text = str(path_or_name)
    if text.endswith(".toml"):
        return parse(_read(Path(path_or_name)), file=text)
    installed = names()
    if text not in installed:
        raise unknown("suite", text, installed, where="suite (an installed one's name, or a path that ends in .toml)")
    suite = parse(installed[text].read_bytes(), file=f"{text}.toml")
    if suite.name != text:
        raise UsageError(
            f"{installed[text]}: suite.name: {suite.name!r}: an installed suite is called as its file, {text!r}"
        )
    return suite


def parse(data: bytes, file: str) -> Suite:
    """A suite from a file's bytes.

    Args:
        data: TOML, UTF-8.
        file: what errors call it.

    Raises:
        UsageError: as :func:`load`.
    """
    try:
        table = tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file}: not valid TOML: {_with_line(str(error), data)}") from None
    try:
        content = SuiteFile.model_validate(table, strict=True)
    except ValidationError as error:
        raise usage_error(error, SuiteFile, file) from None
    _check_profiles(content, file)
    head = content.suite
    return Suite(head.name, head.title, head.description, file, hashlib.sha256(data).hexdigest(), content)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None


def _with_line(message: str, data: bytes) -> str:
    """Adds the line that :mod:`tomllib` leaves out where the document ends too early."""
    lines = len(data.splitlines())
    return message.replace("at end of document", f"at line {lines}, the end of the file")


def _check_profiles(content: SuiteFile, file: str) -> None:
    places = [("defaults", content.defaults.profiles)]
    places += [(f"grid[{i}]", grid.profiles) for i, grid in enumerate(content.grid)]
    for place, given in places:
        for index, name in enumerate(given or []):
            if name not in content.profiles:
                raise unknown("profile", name, content.profiles, where=f"{file}: {place}.profiles[{index}]")
