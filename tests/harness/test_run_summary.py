"""The first lines of a run: what is predicted, what is measured and on what, what is left out."""

import pytest
from click.testing import CliRunner

from harness.cli import snnbench
from harness.cli.run import profiles_of

SUITE = """
[suite]
name = "lines"
title = "Lines"

[profiles.small]
substitute = "two steps"

[profiles.predict]

[profiles.gpu]
device = "cuda"

[defaults]
model = { name = "convnet", norm = "per_step" }
data = "digits"
T = 2
batch = 4

[[grid]]
name = "measured"
method = "bptt"
phases = ["memory"]
profiles = ["small", "gpu"]

[[grid]]
name = "predicted"
method = ["bptt", "sltt"]
predicted = true
profiles = ["predict"]
"""


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "lines.toml"
    path.write_text(SUITE, encoding="utf-8")
    return path


def run(suite, *arguments):
    return CliRunner().invoke(snnbench, ["run", str(suite), "--store", str(suite.parent / "store"), *arguments])


def test_two_profiles_in_one_run_and_again(suite):
    first = run(suite, "--profile", "predict,small")
    assert first.exit_code == 0, first.output
    lines = first.output.splitlines()
    assert lines[0] == "lines, profile predict: predicted: 2 cells: nothing is run, no data and no GPU are needed"
    assert lines[1] == "lines, profile small: measured on the CPU: 1 cells; reduced: two steps"
    assert lines[2].startswith("left out: profile gpu (")
    assert "2 cells: 2 ok; 2 measured now" in first.output
    again = run(suite, "--profile", "predict,small")
    assert "2 cells (2 finished before)" in again.output
    assert again.output.count("; 0 measured now") == 2


def test_data_that_are_not_there_are_told(suite, tmp_path, monkeypatch):
    monkeypatch.setenv("SNNBENCH_DATA", str(tmp_path / "none"))
    text = SUITE.replace('data = "digits"', 'data = "cifar10"').replace("norm", "norm")
    suite.write_text(text, encoding="utf-8")
    from harness.run.summary import first_lines
    from harness.run.todo import RunOptions, select

    lines = first_lines([select(RunOptions(str(suite), tmp_path / "store", "small"))])
    assert any(line.startswith("data cifar10: missing: declared synthetic input") for line in lines), lines


def test_an_unknown_profile_stops_before_anything_runs(suite):
    result = run(suite, "--profile", "predict,tiny")
    assert result.exit_code == 2
    assert "unknown profile 'tiny'" in result.output
    assert not list((suite.parent / "store").glob("lines/*/*.json"))


def test_words_of_the_option():
    assert profiles_of(None) == [None]
    assert profiles_of("a, b,a") == ["a", "b"]
