"""A store of invented records, and the report that is made of it."""

import pytest

from harness.store import Store
from reports.collect import collect
from reports.write import ALL_FORMATS, write
from tests.reports import builders as b


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """Folder of a report in all formats; its store lies beside it."""
    root = tmp_path_factory.mktemp("bench")
    store = Store(root / "results" / "here")
    for record in b.suite(steps=(4, 8), seeds=(0, 1)):
        store.write(record)
    out = root / "reports" / "html"
    write(collect([store.root]), out, ALL_FORMATS)
    return out


@pytest.fixture(scope="session")
def page(report):
    """The invented suite's page as text."""
    return (report / f"{b.SUITE}.html").read_text(encoding="utf-8")
