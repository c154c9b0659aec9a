"""The page: complete, linked, escaped, and it fetches nothing."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from reports.about import About
from reports.cells import DASH
from reports.page import Suite, environment, render, sections
from tests.reports import builders as b

LOADING = {"src", "srcset", "poster", "data", "action", "formaction", "background", "manifest", "ping"}
"""Attributes whose value a browser fetches, or sends to."""


class Reader(HTMLParser):
    """Tags with attributes, table cells, and text by element."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.cells, self.raw, self._open = [], [], [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        self.ids += [found["id"]] if "id" in found else []
        if tag == "td":
            self.cells.append((found, []))
        self._open = tag

    def handle_data(self, data):
        if self._open in ("style", "script"):
            self.raw.setdefault(self._open, []).append(data)
        elif self.cells:
            self.cells[-1][1].append(data)

    def handle_endtag(self, tag):
        self._open = None


@pytest.fixture(scope="module")
def read(page):
    return Reader(page)


def test_nothing_is_fetched(page, read):
    for tag, attrs in read.tags:
        assert not LOADING & attrs.keys(), (tag, attrs)
        assert tag not in ("iframe", "object", "embed", "audio", "video", "img", "base")
        if tag == "link":
            assert attrs["href"] == "data:,"
        for value in filter(None, attrs.values()):
            if tag != "meta":
                assert "url(" not in value.replace("url(#", ""), (tag, value)
    style, script = "".join(read.raw["style"]), "".join(read.raw["script"])
    assert not re.search(r"@import|url\(|https?:|//", style.replace("/*", "").replace("*/", ""))
    assert not re.search(r"https?:|fetch|XMLHttpRequest|WebSocket|import|sendBeacon|EventSource|new Image", script)
    assert "default-src 'none'" in page


def test_links_are_relative_and_lead_somewhere(report, read):
    links = [attrs["href"] for tag, attrs in read.tags if tag == "a"]
    for link in links:
        if link.startswith("#"):
            assert link[1:] in read.ids
        else:
            assert link.startswith("."), link
            assert (report / unquote(link)).is_file(), link
    assert len({link for link in links if link.endswith(".json")}) == len(list(report.parents[1].rglob("*.json")))


def test_ids_are_unique(read):
    assert len(read.ids) == len(set(read.ids))


def test_every_dash_says_why(read):
    dashes = [attrs for attrs, text in read.cells if "".join(text).strip() == DASH]
    assert len(dashes) > 10
    assert all(attrs.get("title") for attrs in dashes)
    assert all("data-sort" not in attrs for attrs in dashes)


def test_numbers_sort_by_raw_values(read):
    numbers = [(attrs, "".join(text)) for attrs, text in read.cells if attrs.get("class") == "n"]
    assert len(numbers) > 100
    for attrs, _ in numbers:
        float(attrs["data-sort"])
    assert any(float(a["data-sort"]) > 2**20 and float(text) < 100 for a, text in numbers if "." in text[:4])


def test_what_a_reader_needs_is_there(page):
    needed = (
        "1 unsupported", "1 oom", "AMD EPYC 7B13", "predicted", "reconstruction", "half the bytes", "Provenance",
        "8x8 digits in place of MNIST", "no installed suite has this name", "energy_per_step_j",
    )  # fmt: skip
    for words in needed:
        assert words in page or words in re.sub(r"<[^>]*>", "", page), words


def test_predictions_show_the_difference(page):
    table = page[page.index('id="t-predicted"') :]
    table = table[: table.index("</article>")]
    assert table.count(">equal<") == 6
    assert "differs" not in table


def test_pages_are_the_same_every_time(report):
    items = b.items((b.record(method, i) for i, method in enumerate(b.METHODS[:2])), report.parents[1])
    suite = Suite("invented", items, 0, About("t"))
    assert render(suite, report) == render(suite, report)


def test_hostile_names_stay_text(tmp_path):
    nasty = '<script>alert("x")</script>&$'
    lost = b.failed(b.METHODS[0], 0, "error")
    phases = {name: phase.model_copy(update={"reason": nasty} if phase.status != "ok" else {})
              for name, phase in lost.phases.items()}  # fmt: skip
    lost = lost.model_copy(update={"phases": phases, "data": {**lost.data, "variant": nasty}})
    html = render(Suite("odd", b.items([lost], tmp_path), 0, About(nasty, nasty, {"cpu": nasty})), tmp_path, [nasty])
    assert "<script>alert" not in html
    assert html.count("<script>") == 1


def test_stale_and_substituted_numbers_are_marked(tmp_path):
    from reports.collect import mark_stale

    old = b.record(b.METHODS[0], 0).model_copy(update={"fingerprint": "0" * 16})
    items = mark_stale(b.items([old, b.record(b.METHODS[0], 1)], tmp_path))
    html = render(Suite("odd", items, 0, About("t", substitutes={"cpu": "tiny input"})), tmp_path)
    assert html.count("m-stale") - html.count(".m-stale") == 1
    assert html.count('class="mark m-substitute"') == 2
    assert "Profile cpu is a substitute: tiny input" in html
    assert "environment B" in html


def test_a_record_of_every_status_is_shown(tmp_path):
    statuses = ("oom", "timeout", "error", "killed", "diverged", "unsupported", "unavailable")
    records = [b.failed(b.METHODS[0], i, status, seed=i) for i, status in enumerate(statuses)]
    html = render(Suite("odd", b.items(records, tmp_path), 0, About("t")), Path(tmp_path))
    table = html[html.index('id="t-failures"') :]
    for status in statuses:
        assert f">{status}</a>" in table
    assert "512.0" in table


def test_what_is_in_backticks_is_code_and_stays_escaped(page):
    text = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.S)
    assert "<code>snnbench claims</code>" in text
    assert "`" not in text
    words = environment({}).filters["words"]
    assert words("run `a <b>` & go") == "run <code>a &lt;b&gt;</code> &amp; go"


@pytest.mark.parametrize("many", [1, 2])
def test_curves_come_before_the_tables_where_there_are_many(many, tmp_path, monkeypatch):
    monkeypatch.setattr("reports.page.MANY_TABLES", many)
    suite = Suite("many", b.items(b.suite(steps=(4,), seeds=(0,)), tmp_path), 0, About("t"))
    assert len(suite.tables) == 2
    ids = [section.id for section in sections(suite)]
    assert (ids.index("fits") < ids.index("comparison")) == (many == 1)
    assert ids[0] == "short"
    assert ids[-1] == "provenance"
