"""The command line: what users type, what they read, and exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from harness import cli
from harness.errors import UsageError
from harness.spec import CellSpec
from harness.store import Store
from harness.suite import load
from tests.harness import cells
from tests.harness.distributions import PLUGINS, POINTS, installed

RUN_ID = "20261121T065101Z-0000000{}"


def call(*arguments):
    return CliRunner().invoke(cli.snnbench, [str(word) for word in arguments])


def process(*arguments, **options):
    """The command in a process of its own, as a user runs it."""
    command = [sys.executable, "-m", "harness", *[str(word) for word in arguments]]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, **options)


@pytest.fixture
def suite(tmp_path):
    return cells.suite_file(tmp_path)


@pytest.fixture
def store(tmp_path, suite):
    """A store that holds two of the suite's three cells: one ok, one that ran out of memory."""
    folder = tmp_path / "store"
    for number, (spec, status) in enumerate(zip(load(suite).expand("cpu"), ["ok", "oom"], strict=False)):
        job = replace(cells.job(folder, run_id=RUN_ID.format(number)), spec=spec, suite="small")
        Store(folder).write(cells.minimal_record(job, status))
    return folder


def test_help_is_quick_and_imports_no_torch():
    script = (
        "import sys, time; begin = time.process_time()\n"  # of the processor: others may be busy beside it
        "from click.testing import CliRunner\nfrom harness import cli\n"
        "said = CliRunner().invoke(cli.snnbench, ['--help']).output\n"
        "print(time.process_time() - begin); print(sorted({'torch', 'pandas', 'pydantic'} & set(sys.modules)))\n"
        "print(said)"
    )
    best = min((cells.python(script) for _ in range(3)), key=lambda said: float(said.split()[0]))
    seconds, heavy, *rest = best.splitlines()
    assert float(seconds) < 1.5
    assert heavy == "[]"
    for command in ("list", "run", "status", "check", "doctor", "reproduce", "results"):
        assert re.search(rf"^  {command} ", "\n".join(rest), re.MULTILINE)


def test_python_m_harness_is_the_command_and_knows_its_version():
    assert process("--version").stdout == f"snnbench, version {metadata.version('snnbench')}\n"


def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path):
    run = process("run", "quik", "--store", tmp_path / "store")
    assert run.returncode == 2
    assert re.fullmatch(r"snnbench: .*'quik'.*Did you mean 'quick'.*\n", run.stderr)
    assert run.stdout == ""
    assert not list((tmp_path / "store").glob("*/*"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--only", "methd=bptt"], "'method'"),
        (["--only", "method=bptq"], "bptt"),
        (["--profile", "gup"], "'gpu'"),
        (["--retry", "oom,eror"], "'error'"),
    ],
)
def test_wrong_options_name_what_is_allowed(suite, tmp_path, arguments, expected):
    said = call("run", suite, "--store", tmp_path, "--dry-run", *arguments)
    assert said.exit_code == 2
    assert said.stderr.startswith("snnbench: ")
    assert said.stderr.count("\n") == 1
    assert expected in said.stderr


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--timeout", "0"], ["--executor", "cloud"], ["--no-such"]])
def test_impossible_options_are_refused_by_click(suite, arguments):
    assert call("run", suite, *arguments).exit_code == 2


def test_a_dry_run_shows_cells_count_and_time_and_runs_nothing(suite, store):
    before = Store(store).files()
    said = call("run", suite, "--store", store, "--dry-run", "--retry", "oom")
    assert said.exit_code == 0
    lines = said.output.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["ok", "run", "run"]
    assert lines[0].split()[1] == load(suite).expand("cpu")[0].hash
    assert lines[3].startswith("small, profile cpu: 3 cells, 1 finished, 2 to run; time needed: at least 1 s (1 of 2")
    assert Store(store).files() == before


def test_a_dry_run_without_earlier_records_does_not_know_the_time(suite, tmp_path):
    said = call("run", suite, "--store", tmp_path / "none", "--dry-run")
    assert "3 to run; time needed: unknown" in said.output
    assert not (tmp_path / "none").exists()


def test_status_counts_by_profile(suite, store):
    said = call("status", suite, "--store", store)
    assert said.exit_code == 0, said.stderr
    header, cpu, gpu = said.output.splitlines()
    assert header.split() == ["profile", "cells", "latest", "runs", "stale", "missing", "running"]
    assert re.fullmatch(r"cpu +3 +1 ok, 1 oom +2 +1 +0", cpu)
    assert re.fullmatch(r"gpu +3 +- +0 +3 +0", gpu)


def test_status_tells_of_damaged_records(suite, store):
    Store(store).files()[0].write_text("{")
    said = call("status", suite, "--store", store, "--profile", "cpu")
    assert "damaged record" in said.stderr
    assert "1 oom" in said.output


@pytest.mark.parametrize("kind", ["methods", "models", "datasets", "suites"])
def test_lists_hold_the_built_in_ones(kind):
    expected = {"methods": "bptt", "models": "convnet", "datasets": "digits", "suites": "quick"}
    said = call("list", kind)
    assert said.exit_code == 0, said.exception
    assert re.search(rf"^{expected[kind]}\*? ", said.output, re.MULTILINE)


def test_a_list_shows_promises_reconstructions_and_what_is_unavailable(tmp_path):
    marked = PLUGINS.replace('"reduced", SegmentOptions', '"reduced", SegmentOptions\n    reconstruction = True')
    points = POINTS | {"snnbench.methods": {"alpha": "Alpha", "beta": "Beta", "broken": "no_such_module.here:Broken"}}
    with installed(tmp_path, marked, points):
        said = call("list", "methods").output
        everything = call("list").output
    assert re.search(r"^beta\* +biased +changed: narrower +reduced +- +exact$", said, re.MULTILINE)
    assert re.search(r"^unavailable: broken \(acme 1\.2\): .*no_such_module", said, re.MULTILINE)
    assert "* our reconstruction" in said
    headings = [line for line in everything.splitlines() if line.isupper()]
    assert headings == ["METHODS", "MODELS", "DATASETS", "SUITES", "RECIPES"]


COMMAND = """
import click

@click.command(short_help="made by acme")
@click.argument("word")
def shout(word):
    click.echo(word.upper())
"""


def test_other_packages_add_commands_and_a_broken_one_harms_nobody(tmp_path):
    points = {cli.GROUP: {"shout": "shout", "mumble": "no_such_module.here:mumble", "number": "math:pi"}}
    with installed(tmp_path, COMMAND, {cli.GROUP: points[cli.GROUP] | {"number": "os.path:sep"}}):
        listed = call("--help")
        assert re.search(r"shout +made by acme", listed.output)
        assert listed.exit_code == 0
        assert call("shout", "hello").output == "HELLO\n"
        broken = call("mumble", "--loud", "x")
        wrong = call("number")
    assert (broken.exit_code, wrong.exit_code) == (2, 2)
    assert "no_such_module" in broken.stderr
    assert "is no click command" in wrong.stderr


def test_results_export_merge_and_verify(store, tmp_path):
    said = call("results", "export", tmp_path / "all.csv", "--store", store)
    assert said.output.startswith("2 rows: ")
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 3
    merged = call("results", "merge", store, "--store", tmp_path / "other")
    assert (merged.exit_code, merged.output) == (0, "2 records copied, 0 were there already\n")
    assert call("results", "merge", store, "--store", tmp_path / "other").output.startswith("0 records copied, 2")
    assert call("results", "verify", "--store", tmp_path / "other").output == "2 records, 0 problems\n"
    file = Store(tmp_path / "other").files()[0]
    file.write_text(file.read_text().replace('"T": ', '"T": 1', 1))
    assert call("results", "verify", "--store", tmp_path / "other").exit_code == 1


@pytest.mark.parametrize("arguments", [["export", "x.csv"], ["verify"]])
def test_results_of_no_store_is_a_mistake(tmp_path, arguments):
    said = call("results", *arguments, "--store", tmp_path / "none")
    assert said.exit_code == 2
    assert "none" in said.stderr


def test_check_reports_every_promise_and_its_exit_code_says_whether_all_were_kept(monkeypatch):
    from harness import conformance

    kept = conformance.Check("fidelity: dropout", True, "error 1e-16")
    odd = conformance.Check("bf16: dropout", None, skipped_reason="no such thing here")
    broken = conformance.Check("saved bytes: dropout", False, "grows with T")
    for results, code in [([kept, odd], 0), ([kept, broken], 1)]:
        monkeypatch.setattr(conformance, "check", lambda name, options, results=results: results)
        said = call("check", "bptt")
        assert said.exit_code == code
        assert said.output.startswith(f"bptt: 1 passed, {code} failed, {1 - code} do not apply")
    assert re.search(r"^FAILED +saved bytes: dropout +grows with T$", said.output, re.MULTILINE)


def test_check_of_an_unknown_method_is_a_mistake():
    said = call("check", "bptq")
    assert said.exit_code == 2
    assert "bptt" in said.stderr


def test_check_takes_a_methods_options(monkeypatch):
    from harness import conformance

    given = {}
    monkeypatch.setattr(conformance, "check", lambda name, options: given.update({name: options}) or [])
    said = call("check", "checkpoint-compress:level=O3:compressor=bit", "sltt-k:k=2", "bptt")
    assert given == {"checkpoint-compress": {"level": "O3", "compressor": "bit"}, "sltt-k": {"k": 2}, "bptt": {}}
    assert said.output.startswith("checkpoint-compress:level=O3:compressor=bit: 0 passed")


@pytest.mark.parametrize("word", ["checkpoint-compress:levl=O3", "checkpoint-compress:level=O9", "bptt:fast"])
def test_check_of_a_wrong_option_is_a_mistake(word):
    said = call("check", word)
    assert said.exit_code == 2
    assert f"check {word.split(':')[0]}" in said.stderr or "check" in said.stderr


def test_the_resume_command_leaves_fresh_out(monkeypatch):
    from harness.cli.run import resume_command

    monkeypatch.setattr(sys, "argv", ["/x/snnbench", "run", "my suite.toml", "--fresh", "--jobs", "2"])
    assert resume_command() == "snnbench run 'my suite.toml' --jobs 2"


REAL = """
[suite]
name = "real"
title = "real cells"
[profiles.cpu]
timeout_s = 120
[[grid]]
name = "memory"
method = ["bptt", "sltt"]
model = { name = "convnet", channels = [4], norm = "per_step" }
data = "digits"
T = [2, 4]
batch = 4
phases = ["fidelity", "memory"]
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A real run with the real worker, from the command line."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "real.toml").write_text(REAL)
    arguments = ("run", folder / "real.toml", "--store", folder / "store", "--jobs", "2", "--order-seed", "3")
    return folder, process(*arguments)


def test_a_real_run_from_the_command_line(real):
    folder, run = real
    assert run.returncode == 0, run.stderr
    first, *progress, counts, where = run.stdout.splitlines()
    assert first == "real, profile cpu: measured on the CPU: 4 cells"
    assert [line.split("]")[0] for line in progress] == ["[1/4", "[2/4", "[3/4", "[4/4"]
    assert counts == "4 cells: 4 ok; 4 measured now (order seed 3)"
    assert str(folder / "store") in where
    assert all(record.memory and record.fidelity for _, record in Store(folder / "store").records())


def test_a_real_record_is_reproduced_on_the_same_machine(real):
    folder, _ = real
    path = Store(folder / "store").files()[0]
    run = process("reproduce", path, "--store", folder / "again")
    assert run.returncode == 0, run.stdout + run.stderr
    equal, total = re.search(r"^(\d+) of (\d+) values that should repeat are equal$", run.stdout, re.MULTILINE).groups()
    assert int(equal) == int(total) > 30
    assert "same code, environment and device" in run.stdout
    assert len(Store(folder / "again").records()) == 1


def test_doctor_looks_at_everything_and_explains(tmp_path):
    run = process("doctor", "--store", tmp_path, env={**os.environ, "SNNBENCH_DATA": "/proc/none"})
    assert run.returncode == 0, run.stderr
    for name in ("python", "torch", "CUDA devices", "triton", "store", "fork server", "VmHWM", "OOM", "methods"):
        assert name in run.stdout
    assert re.search(r"^ok +fork server: started in .* 1 thread$", run.stdout, re.MULTILINE)
    assert re.search(r"^broken +data: /proc/none.*\n +-> point \$SNNBENCH_DATA", run.stdout, re.MULTILINE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_prints_how_to_go_on(tmp_path, number):
    (tmp_path / "long.toml").write_text(REAL.replace("T = [2, 4]", "T = [2048]").replace("batch = 4", "batch = 512"))
    command = [sys.executable, "-m", "harness", "run", str(tmp_path / "long.toml"), "--store", str(tmp_path / "store")]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    claims = tmp_path / "store" / ".claims"
    end = time.monotonic() + 100
    while not list(claims.glob("*.json")):
        assert run.poll() is None, run.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)
    run.send_signal(number)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 130
    assert said.startswith("snnbench: stopped.")
    assert f"To go on: snnbench run {tmp_path / 'long.toml'}" in said
    assert "Traceback" not in said


def test_ctrl_c_at_the_very_start_shows_no_traceback_of_any_process(tmp_path, suite):
    command = [sys.executable, "-m", "harness", "run", suite, "--store", str(tmp_path / "store")]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 60
    while not (tmp_path / "store").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.5)
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=120)
    # CPython ends by the signal itself where it struck inside an exec() of a string, as dataclasses have while imported
    assert run.returncode in {130, -signal.SIGINT}, said
    assert said.startswith("snnbench: stopped")
    assert "Traceback" not in said


def test_usage_errors_inside_commands_never_show_a_traceback(monkeypatch):
    @click.command()
    def fails():
        raise UsageError("no such thing")

    monkeypatch.setitem(cli.COMMANDS, "fails", "nowhere:fails")
    monkeypatch.setattr(cli.Commands, "get_command", lambda *_: fails)
    said = call("fails")
    assert (said.exit_code, said.stderr) == (2, "snnbench: no such thing\n")


def test_specs_in_records_are_those_of_the_suite(real):
    folder, _ = real
    for path, record in Store(folder / "store").records():
        assert path.parent.name == record.spec.hash
        assert CellSpec.model_validate(json.loads(path.read_text())["spec"]) == record.spec
    assert Path(folder / "store" / "real").is_dir()
