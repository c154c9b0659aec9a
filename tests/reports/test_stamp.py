"""A report that would say the same is not written again, and anything that it depends on makes a new one."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from harness.store import Store
from reports.cli import report as command
from reports.stamp import FILE, digest, unchanged
from tests.reports import builders as b

SAYS = "nothing has changed"


def run(*arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


@pytest.fixture
def written(tmp_path):
    store = Store(tmp_path / "store")
    store.write(b.record(b.METHODS[0], 0))
    out = tmp_path / "html"
    assert SAYS not in run("--store", store.root, "--out", out).output
    return store, out


def test_the_second_time_names_the_same_files_and_writes_nothing(written):
    store, out = written
    before = {page: page.stat().st_mtime_ns for page in out.iterdir()}
    again = run("--store", store.root, "--out", out)
    assert again.exit_code == 0
    assert SAYS in again.output
    assert str(out / "index.html") in again.output
    assert {page: page.stat().st_mtime_ns for page in out.iterdir()} == before


def test_it_imports_nothing_heavy(written):
    store, out = written
    code = (
        "import sys\nfrom reports.cli import report\n"
        f"report(['--store', {str(store.root)!r}, '--out', {str(out)!r}], standalone_mode=False)\n"
        "print([m for m in ('pandas', 'seaborn', 'matplotlib', 'torch', 'pyarrow', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert SAYS in done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_new_record_makes_new_pages(written):
    store, out = written
    store.write(b.record(b.METHODS[1], 1))
    assert SAYS not in run("--store", store.root, "--out", out).output
    assert "checkpoint" in (out / "invented.html").read_text(encoding="utf-8")


def test_a_record_that_is_gone_makes_new_pages(written):
    store, out = written
    path = store.write(b.record(b.METHODS[1], 1))
    run("--store", store.root, "--out", out)
    path.unlink()
    assert SAYS not in run("--store", store.root, "--out", out).output


@pytest.mark.parametrize("harm", ["edited", "deleted", "stamp"])
def test_pages_that_somebody_touched_are_written_again(written, harm):
    store, out = written
    page = out / (FILE if harm == "stamp" else "invented.html")
    if harm == "deleted":
        page.unlink()
    else:
        page.write_text("{", encoding="utf-8")
    assert SAYS not in run("--store", store.root, "--out", out).output
    assert "Published claims" in (out / "invented.html").read_text(encoding="utf-8")


def test_other_formats_and_other_stores_are_another_report(written, tmp_path):
    store, out = written
    other = Store(tmp_path / "other")
    other.write(b.record(b.METHODS[2], 2))
    assert SAYS not in run("--store", store.root, "--out", out, "--format", "html,csv").output
    assert SAYS not in run("--store", store.root, "--store", other.root, "--out", out).output


def test_the_code_counts(written, monkeypatch, tmp_path):
    store, out = written
    made_of = digest([store.root], out, ["html"])
    assert unchanged(out, made_of)
    package = tmp_path / "code"
    package.mkdir()
    monkeypatch.setattr("reports.stamp._places", lambda: [str(package)])
    before = digest([store.root], out, ["html"])
    (package / "page.py").write_text("one")
    assert digest([store.root], out, ["html"]) != before


def test_an_unreadable_record_is_told_every_time(written):
    store, out = written
    path = store.write(b.record(b.METHODS[1], 1))
    newer = path.read_text(encoding="utf-8").replace('"schema_version": 1', '"schema_version": 999')
    path.write_text(newer, encoding="utf-8")
    os.utime(path)
    for _ in range(2):
        assert "newer snnbench" in run("--store", store.root, "--out", out).output
