"""A user's own file, from an empty folder to a table and a report, in processes as a user starts them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.store import Store

NETS = Path(__file__).parents[1] / "harness" / "plan_nets.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(NETS, folder / "mynets.py")
    return folder


def snnbench(folder, *words):
    code = "import sys; sys.path.remove(''); from harness.cli import main; main()"  # as the console script: not here
    command = [sys.executable, "-c", code, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=280
    )


def test_a_users_model_is_measured_and_reported(folder):
    methods = "checkpoint,sltt"
    done = snnbench(folder, "bench", "mynets:residual", "--input", "3,2,1,8,8", "--methods", methods, "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "model: 3 stages and a head, whose output equals the model's to the bit" in done.stdout
    table = {line.split()[0]: line for line in done.stdout.splitlines() if line[:1].isalpha()}
    assert re.search(r" 1\.00 .*\(baseline\)", table["bptt"])
    assert float(table["checkpoint"].split()[4]) < 1, "less than BPTT's peak"
    assert "left out: sltt: unsupported: build: runs one time step at a time" in done.stdout
    page = folder / "reports/html/bench-mynets-residual.html"
    assert "checkpoint" in page.read_text()
    records = [record for _, record in Store(folder / "results/bench").records("bench-mynets-residual")]
    assert {record.spec.method.name for record in records} == {"bptt", "checkpoint", "sltt"}
    exact = {r.spec.method.name: r.fidelity[0].relative_l2 for r in records if r.fidelity}
    assert exact["checkpoint"] <= 1e-5


def test_a_users_model_is_planned_for(folder):
    done = snnbench(folder, "plan", "--model", "mynets:residual", "--input", "1,8,8", "--classes", 10,
                    "--methods", "bptt,checkpoint", "--budget", "1GiB", "--jobs", 2)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^-> +bptt +exact", done.stdout, re.MULTILINE)


def test_a_package_of_our_name_is_refused_before_anything_runs(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "project", ignore=shutil.ignore_patterns("results", "reports"))
    (tmp_path / "project/methods").mkdir()
    (tmp_path / "project/methods/__init__.py").touch()
    done = snnbench(tmp_path / "project", "bench", "mynets:residual", "--input", "3,2,1,8,8")
    assert done.returncode == 2
    assert "has the import name of snnbench's own 'methods'" in done.stderr
    assert "Traceback" not in done.stderr
