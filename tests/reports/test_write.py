"""The command, its files and its errors; and that reports stay within their walls."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.errors import UsageError
from harness.store import Store
from reports.about import about, parse
from reports.cli import report as command
from reports.collect import Collection, collect
from reports.links import href, relative
from reports.write import ALL_FORMATS, write
from tests.reports import builders as b


def run(*arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "results" / "here")
    made.write(b.record(b.METHODS[0], 0))
    return made


def test_command_writes_and_names_its_files(store, tmp_path):
    out = tmp_path / "reports" / "html"
    result = run("--store", store.root, "--out", out, "--format", "csv,md,latex,html")
    assert result.exit_code == 0, result.output
    names = [Path(line).name for line in result.output.split()]
    assert names == ["index.html", "invented.html", "invented.csv", "invented.md", "invented.tex"]
    assert all((out / name).stat().st_size for name in names)


def test_unknown_format(store):
    result = run("--store", store.root, "--format", "html,pdf")
    assert result.exit_code == 2
    assert "'pdf'. Allowed: html, csv, md, latex" in result.output


def test_missing_store(tmp_path):
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        collect([tmp_path / "nowhere"])


def test_empty_store(tmp_path):
    with pytest.raises(UsageError, match="no records to report on"):
        write(Collection(), tmp_path)


def test_folder_that_cannot_be_written(store, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="cannot write"):
        write(collect([store.root]), tmp_path / "file" / "html")


def test_unreadable_records_are_reported_on_the_pages(store, tmp_path):
    broken = store.root / "invented" / ("0" * 16) / "20261121T000000Z-00000000.json"
    broken.parent.mkdir()
    broken.write_text("{")
    collection = collect([store.root])
    assert len(collection.problems) == 1
    out = tmp_path / "html"
    write(collection, out)
    for name in ("index.html", "invented.html"):
        assert "Unreadable: " in (out / name).read_text()


def test_merged_stores_count_a_run_once(store, tmp_path):
    copy = Store(tmp_path / "results" / "copy")
    copy.write(b.record(b.METHODS[0], 0))
    copy.write(b.record(b.METHODS[1], 1))
    assert len(collect([store.root, copy.root]).suites["invented"]) == 2


def test_older_runs_are_counted_not_shown(store):
    store.write(b.record(b.METHODS[0], 5))
    collection = collect([store.root])
    assert len(collection.suites["invented"]) == 1
    assert collection.superseded["invented"] == 1


def test_a_suite_called_index_does_not_take_the_index(tmp_path):
    store = Store(tmp_path / "s")
    store.write(b.record(b.METHODS[0], 0).model_copy(update={"suite": "index"}))
    written = [path.name for path in write(collect([store.root]), tmp_path / "html")]
    assert written == ["index.html", "suite-index.html"]
    assert './suite-index.html"' in (tmp_path / "html" / "index.html").read_text()


def test_formats_agree_with_the_command():
    from reports.cli import FORMATS

    assert FORMATS == ALL_FORMATS


def test_links_survive_odd_folders(tmp_path):
    target = tmp_path / "a b" / "c#1%.json"
    assert relative(target, tmp_path / "out") == "../a b/c#1%.json"
    assert href(target, tmp_path / "out") == "../a%20b/c%231%25.json"
    assert href(tmp_path / "x:y.json", tmp_path) == "./x%3Ay.json"


def test_about_an_unknown_suite():
    found = about("surely-not-installed")
    assert found.title == "surely-not-installed"
    assert "no installed suite" in (found.problem or "")


def test_about_reads_title_and_substitutes():
    text = (
        b'[suite]\nname="q"\ntitle="Quick"\ndescription="a\\n  b"\n[profiles.cpu]\nsubstitute="8x8"\n[profiles.gpu]\n'
    )
    found = parse("q", text)
    assert (found.title, found.description, dict(found.substitutes)) == ("Quick", "a b", {"cpu": "8x8"})
    assert parse("q", b"[suite").problem
