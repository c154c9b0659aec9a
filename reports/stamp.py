"""Whether anything that a report depends on has changed since its pages were written; nothing is read, only looked at.

Writing pages takes seconds, most of it imports. The stamp beside the pages holds a digest over names, sizes and times
of the stores' records, of the code that reads them and of the suites' files, and the sizes of the pages themselves.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

GROUP = "snnbench.suites"
"""Entry-point group of the packages whose ``*.toml`` and ``claims/*.toml`` the pages quote."""
FILE = ".stamp.json"
CODE = ("reports", "harness.store", "harness.record", "harness.spec")
"""Packages and modules that decide what a page looks like."""
ENDINGS = (".py", ".j2", ".css", ".js", ".toml")


def digest(stores: Sequence[Path], out: Path, formats: Sequence[str]) -> str:
    """What the pages are made of, as 64 hex digits.

    Args:
        stores: folders of records.
        out: folder of the pages, which links start from.
        formats: which are written.
    """
    found = hashlib.sha256(json.dumps([str(out.resolve()), *formats]).encode())
    for store in stores:
        found.update(f"store {store.resolve()}\n".encode())
        found.update("".join(sorted(_records(store))).encode())
    for place in _places():
        found.update("".join(sorted(_sources(place))).encode())
    return found.hexdigest()


def unchanged(out: Path, made_of: str) -> list[Path]:
    """The pages, if they were written from this and nobody has touched them since; otherwise none.

    Args:
        out: folder of the pages.
        made_of: from :func:`digest`.
    """
    try:
        stamp = json.loads((out / FILE).read_text(encoding="utf-8"))
        pages = {out / name: line for name, line in stamp["pages"].items()}
        same = stamp["digest"] == made_of and all(_line(page) == line for page, line in pages.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # no stamp, or one that somebody has edited: write the pages again
    return list(pages) if same else []


def keep(out: Path, made_of: str, pages: Iterable[Path]) -> None:
    """Remember what the pages were made of.

    Args:
        out: their folder.
        made_of: from :func:`digest`, taken before the records were read: what comes in between is then not missed.
        pages: what was written.
    """
    stamp = {"digest": made_of, "pages": {page.name: _line(page) for page in pages}}
    (out / FILE).write_text(json.dumps(stamp, indent=1), encoding="utf-8")


def _line(file: Path) -> str:
    found = file.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def _records(store: Path) -> Iterator[str]:
    """A line for each ``<suite>/<cell>/<run>.json``."""
    for suite in _scan(store):
        if suite.is_dir() and suite.name[0] not in "._":
            for cell in _scan(suite.path):
                if cell.is_dir():
                    yield from (
                        _entry_line(file, f"{suite.name}/{cell.name}/")
                        for file in _scan(cell.path)
                        if file.name.endswith(".json")
                    )


def _sources(place: str) -> Iterator[str]:
    """A line for each source file below a folder, or for the file itself."""
    if not Path(place).is_dir():
        found = Path(place).stat()
        yield f"{place} {found.st_size} {found.st_mtime_ns}\n"
        return
    for entry in _scan(place):
        if entry.is_dir() and entry.name not in ("__pycache__", "html"):
            yield from _sources(entry.path)
        elif entry.name.endswith(ENDINGS):
            yield _entry_line(entry, f"{place}/")


def _places() -> list[str]:
    """Folders and files of the code and of the suites' packages; nothing is imported but parents of nested ones."""
    found: list[str] = []
    for name in sorted({*CODE, *(point.value for point in metadata.entry_points(group=GROUP))}):
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            continue  # a broken plugin package is the harness's to report
        if spec is not None:
            found += list(spec.submodule_search_locations or ([spec.origin] if spec.origin else []))
    return found


def _scan(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _entry_line(entry: os.DirEntry[str], before: str) -> str:
    found = entry.stat()
    return f"{before}{entry.name} {found.st_size} {found.st_mtime_ns}\n"
