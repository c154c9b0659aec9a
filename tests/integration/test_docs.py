"""What the pages of docs/ say is what the code has."""

from __future__ import annotations

import re
import runpy
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from harness import fidelity, ledger, record, registry, suite, timing
from harness.spec import LossSpec, Recipe
from harness.stats import EQUIVALENCE_MARGIN
from harness.store import Store
from harness.suite.schema import Grid, Header, Profile
from tests.integration.pages import DOCS, ROOT, blocks

PAGES = sorted(DOCS.glob("*.md"))


def text(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_named_files_exist(page: Any) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
        assert (DOCS / target).exists(), target
    for path in re.findall(r"`((?:harness|methods|suites|reports|tests|examples|scripts)/[\w./-]+)`", page.read_text()):
        assert (ROOT / path).exists(), path


def test_the_index_names_every_page() -> None:
    assert set(re.findall(r"\]\((\S+\.md)\)", text("README.md"))) == {p.name for p in PAGES} - {"README.md"}


def test_the_tables_of_methods_are_the_registrys() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "methods_page.py"))
    assert text("methods.md") == script["page"](text("methods.md")), "run: python scripts/methods_page.py"


def test_the_table_of_the_readme_is_the_reference_stores() -> None:
    page = (ROOT / "README.md").read_text("utf-8")
    heads, _, *rows = [line for line in page.splitlines() if line.startswith("| network") or line.startswith("|---|---:")
                       or re.match(r"\| `[a-z-]+` \(", line)]  # fmt: skip
    methods = re.findall(r"`([^`]+)`", heads)
    found = {}
    for _, kept in Store(ROOT / "results" / "reference" / "predicted").records("imagenet"):
        spec, options = kept.spec, kept.spec.model.options
        if options.get("norm") == "over_time" and options.get("pooling") != "before_neuron" and kept.memory is not None:
            level = spec.method.options.get("level")
            name = f"{spec.method.name}(level={level})" if level else spec.method.name
            if spec.method.options.get("budget") in (None, "min"):
                found[spec.model.name, name] = kept.memory.peak_live_bytes
    assert len(rows) == 3
    for row in rows:
        model = re.findall(r"`([a-z-]+)`", row)[0]
        assert [int(n) for n in re.findall(r"\| (\d+)", row)] == [round(found[model, m] / 2**20) for m in methods]


def test_every_method_of_this_package_is_in_the_tables() -> None:
    tables = text("methods.md").split("<!-- end -->")[0]
    for name, entry in registry.entries("methods").items():
        if entry.target.startswith("methods."):
            assert tables.count(f"\n| `{name}`") == 2, name


def keys(value: Any) -> Iterator[str]:
    """Every key of a table, and those of the tables in it."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield name
        yield from keys(inner)
    for inner in value if isinstance(value, list) else ():
        yield from keys(inner)


@pytest.fixture(scope="module")
def example() -> str:
    (only,) = [block.text for block in blocks(DOCS / "suites.md") if block.language == "toml"]
    return only


@pytest.mark.parametrize("table", [Header, Profile, Grid, Recipe, LossSpec], ids=lambda t: t.__name__)
def test_the_example_of_suites_has_every_key(example: str, table: type[BaseModel]) -> None:
    assert set(table.model_fields) <= set(keys(tomllib.loads(example)))


def test_the_example_of_suites_expands(example: str) -> None:
    parsed = suite.parse(example.encode(), "suites.md")
    cpu, gpu = parsed.expand("cpu"), parsed.expand("gpu")
    # cost: 3 methods x 2 T x 2 precisions; prediction: 2 methods at the profile's 2 T.
    assert len(cpu) == 12 + 4
    # cost: 3 x 3 x 2; accuracy: 2 methods x 3 seeds; published-recipes: 2 losses; prediction: 2.
    assert len(gpu) == 18 + 6 + 2 + 2
    assert {c.recipe.epochs for c in cpu} == {8}
    assert {c.recipe.epochs for c in gpu} == {100, 200}, "revsnn-cifar says 200"
    assert {c.device for c in gpu} == {"cuda"}


def test_measuring_explains_every_status() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", text("measuring.md"), re.MULTILINE)
    assert tuple(rows[rows.index("ok") :]) == record.STATUSES


def test_measuring_explains_every_field_of_the_memory_block() -> None:
    for name in record.Memory.model_fields:
        assert f"`{name}`" in text("measuring.md"), name


def test_fields_that_measuring_names_exist() -> None:
    known = {"timeout_s", "prepare"}
    for block in (record.Memory, record.Timing, record.Fidelity, record.Training, record.Distributed, record.Record):
        known |= set(block.model_fields)
    named = set(re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)`", text("measuring.md")))
    assert named - known == {"per_step", "time_mean"}


def test_measuring_gives_the_reports_margin_and_marks() -> None:
    assert f"±{100 * EQUIVALENCE_MARGIN:g} percentage point" in text("measuring.md")
    for mark in ("noisy", "disturbed", "unpaired", "equivalent", "different", "undecided", "silent", "broken", "stale"):
        assert mark in text("measuring.md"), mark


def test_measuring_gives_the_thresholds_of_the_code() -> None:
    page = " ".join(text("measuring.md").split())
    assert f"coefficient of variation above {timing.NOISY_CV:.2f}" in page
    assert f"more than {timing.NOISY_DRIFT:.0%}".replace("%", " %") in page
    assert timing.FOREIGN_LOAD == 0.5
    assert "more than half a processor" in page
    assert fidelity.FLOOR[torch.float32] == 1e-5
    assert "the larger of 1e-5 and" in page
    assert fidelity.SILENT_RATE == 1e-3
    assert "less than once in a thousand" in page
    assert ledger.BLOCK == 512
    assert "blocks of 512 bytes" in page
