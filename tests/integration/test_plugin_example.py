"""docs/write-a-method.md, executed: a third-party package is installed with pip, listed, checked and measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.pages import DOCS, ROOT, Session, Step, blocks

PAGE = blocks(DOCS / "write-a-method.md")
EXAMPLE = ROOT / "examples" / "plugin"


def follows(test: Any) -> Any:
    """Marks a test that takes ``session``: following the page (install, check, measure) takes half a minute and more."""
    return pytest.mark.slow(pytest.mark.timeout(900)(test))


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, dict[str, Step]]:
    """A reader of the page, and the steps by their last command's first words."""
    reader = Session(tmp_path_factory.mktemp("reader"))
    steps = reader.follow(PAGE)
    return reader, {" ".join(step.command.splitlines()[-1].split()[:2]): step for step in steps}


def records(reader: Session) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((reader.work / "results").glob("window/*/*.json"))]


def test_the_page_shows_the_files_of_the_example() -> None:
    shown = {block.path: block.text for block in PAGE if block.path is not None}
    files = [p for p in EXAMPLE.rglob("*") if p.is_file() and p.suffix in (".py", ".toml") and "build" not in p.parts]
    assert shown == {str(p.relative_to(EXAMPLE)): p.read_text("utf-8") for p in files}


@follows
@pytest.mark.parametrize(
    "command", ["snnbench list", "snnbench check", "snnbench run", "print(row.method_label, row.T,"]
)
def test_a_command_prints_what_the_page_shows(session: tuple[Session, dict[str, Step]], command: str) -> None:
    step = session[1][command]
    assert step.shown is not None
    assert step.as_shown, f"{step.command}\nshown:\n{step.shown}\nprinted:\n{step.printed}"


@follows
def test_every_command_of_the_page_ran(session: tuple[Session, dict[str, Step]]) -> None:
    commands = [block for block in PAGE if block.path is None and block.language in ("sh", "python")]
    assert len(session[1]) == len(commands) == 4


@follows
def test_the_plugin_is_third_party_and_beside_the_built_in_ones(session: tuple[Session, dict[str, Step]]) -> None:
    listed = session[1]["snnbench list"].printed.splitlines()
    names = {line.split()[0].rstrip("*") for line in listed if line.strip()}
    assert {"tbptt", "bptt", "sltt"} <= names
    reader = session[0]
    found = Path(reader.python("import snnbench_example; print(snnbench_example.__file__)").strip())
    assert found.is_relative_to(reader.work.parent / "site")


@follows
def test_its_cells_are_measured_like_any_other(session: tuple[Session, dict[str, Step]]) -> None:
    found = records(session[0])
    assert len(found) == 6
    assert {record["status"] for record in found} == {"ok"}
    ours = [record for record in found if record["spec"]["method"]["name"] == "tbptt"]
    assert {record["spec"]["baseline"] for record in ours} == {"bptt"}
    assert all(record["method"]["gradient"] == "biased" for record in ours)


@follows
def test_a_wider_window_saves_more_and_is_closer_to_bptt(session: tuple[Session, dict[str, Step]]) -> None:
    for steps in (32, 64):
        rows = [r for r in records(session[0]) if r["spec"]["T"] == steps]
        rows.sort(key=lambda r: r["memory"]["saved_bytes"])
        windows = [r["spec"]["method"]["options"].get("window") for r in rows]
        assert windows == [4, 16, None]
        cosines = [r["fidelity"][0]["cosine"] for r in rows]
        assert cosines == sorted(cosines)
        assert cosines[0] < 0.99
        assert cosines[2] == pytest.approx(1.0)


@follows
def test_a_window_of_the_whole_sequence_is_bptt(session: tuple[Session, dict[str, Step]]) -> None:
    code = """
import snnbench
spec = snnbench.cell({"name": "tbptt", "window": 20}, {"name": "tiny", "tau": 50.0}, "delayed-recall", T=20, batch=8)
print(snnbench.measure_fidelity(spec).relative_l2 < 1e-6)
"""
    assert session[0].python(code).strip() == "True"
