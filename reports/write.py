"""Write reports: a page a suite, an index, and the other formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from reports.about import about
from reports.collect import Collection, machine_line
from reports.exports import FORMATS
from reports.page import Suite, environment, render

INDEX = "index.html"
ALL_FORMATS = ("html", *FORMATS)


@dataclass(frozen=True)
class _Entry:
    """A line of the index."""

    name: str
    href: str
    title: str
    cells: int
    ended: str
    machines: str
    latest: str


def write(collection: Collection, out: Path, formats: Sequence[str] = ("html",)) -> list[Path]:
    """Write every suite in every format.

    Args:
        collection: what the stores hold.
        out: folder; made where it is missing.
        formats: of :data:`ALL_FORMATS`.

    Returns:
        The files, the index first where there is one.

    Raises:
        UsageError: there are no records, or the folder cannot be written.
    """
    if not collection.suites:
        raise UsageError("there are no records to report on: run a suite first, or name its store with --store")
    written, entries = [], []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in collection.suites:
            suite = Suite(name, collection.suites[name], collection.superseded[name], about(name))
            if "html" in formats:
                entries.append(_entry(suite))
                written.append(_save(out / _page(name), render(suite, out, _problems_of(collection, name))))
            for kind in formats:
                if kind in FORMATS:
                    ending, export = FORMATS[kind]
                    written.append(_save(out / f"{name}.{ending}", export(suite, out)))
        if entries:
            html = environment({}).get_template("index.html.j2").render(entries=entries, problems=collection.problems)
            written.insert(0, _save(out / INDEX, html))
    except OSError as error:
        raise UsageError(
            f"reports folder {out}: cannot write: {error.strerror or error}; give another --out"
        ) from error
    return written


def _problems_of(collection: Collection, suite: str) -> list[str]:
    """Unreadable files of one suite; the index lists those of all."""
    return [problem for problem in collection.problems if f"/{suite}/" in problem.replace("\\", "/")]


def _page(suite: str) -> str:
    """A page's file name; a suite called ``index`` must not take the index's place."""
    return f"{suite}.html" if f"{suite}.html".lower() != INDEX else "suite-index.html"


def _entry(suite: Suite) -> _Entry:
    statuses = Counter(item.record.status for item in suite.items)
    machines = sorted({machine_line(item.record) for item in suite.items if not item.record.spec.predicted})
    return _Entry(
        name=suite.name,
        href=f"./{_page(suite.name)}",
        title=suite.about.title,
        cells=len(suite.items),
        ended=", ".join(f"{count} {status}" for status, count in statuses.most_common()),
        machines="; ".join(machines) or "predictions only",
        latest=max(item.record.created for item in suite.items),
    )


def _save(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
