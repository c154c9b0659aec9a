"""The one command for a GPU machine, on whatever machine the tests run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import torch

from harness import registry
from harness.store import Store
from harness.store.frame import export, frame
from harness.suite.loading import load
from scripts import gpu_check, gpu_table
from tests.harness.samples import sample_memory, sample_record, sample_spec, sample_timing

ROOT = Path(__file__).parents[2]


def command(*args: str, out: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OUT": str(out), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        ["bash", "scripts/gpu_run.sh", *args], cwd=ROOT, env=environment, text=True, capture_output=True, timeout=120
    )


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    found = command(out=tmp_path / "out")
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert line.startswith("gpu_run: no GPU cell can run here: torch ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--minutes", "soon"], "gpu_run: --minutes takes a whole number, not 'soon'"),
        (["--hours", "1"], "gpu_run: unknown option --hours (allowed: --minutes M, --wheels DIR, --store DIR)"),
    ],
)
def test_usage(args: list[str], message: str, tmp_path: Path) -> None:
    found = command(*args, out=tmp_path / "out")
    assert (found.returncode, found.stderr.strip()) == (2, message)


def test_entry_points_of_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    gpu_check.write_metadata(tmp_path)
    (found,) = importlib.metadata.distributions(path=[str(tmp_path)])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (found.name, found.version) == ("snnbench", project["version"])
    entries = found.entry_points.select(group="snnbench.methods")
    assert {"bptt", "bptt-fused", "checkpoint-compress"} <= entries.names
    assert all(entry.load().name == entry.name for entry in entries if entry.name in ("bptt", "sltt"))


def test_the_suite_has_every_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    gpu_check.prepare(tmp_path)
    suite = load(tmp_path / "gpu-memory.toml")
    assert suite.profile("gpu").device == "cuda"
    (line,) = [row for row in (tmp_path / "gpu-memory.toml").read_text().splitlines() if "gpu_check.py puts" in row]
    names = json.loads(line.split("=")[1].split("#")[0])
    assert names == sorted(registry.entries("methods"))


def test_the_table(tmp_path: Path) -> None:
    spec = sample_spec(device="cuda")
    seen = dict.fromkeys(("cuda_allocated_bytes", "cuda_reserved_bytes", "cuda_requested_bytes"), 8 << 20)
    measured = sample_record(
        spec=spec,
        memory=sample_memory(**seen, nvml_process_bytes=1 << 30),
        timing=sample_timing(energy_per_step_j=0.25, clock="cuda_event"),
    )
    Store(tmp_path / "store").write(measured)
    export(frame(Store(tmp_path / "store").records()), tmp_path / "table.csv")
    text = gpu_table.table(str(tmp_path / "table.csv"))
    row = text.splitlines()[1]
    assert " 8.0 " in row
    assert " 0.25" in row
    assert "1 ok" in text
    empty = pd.read_csv(tmp_path / "table.csv").iloc[:0]
    empty.to_csv(tmp_path / "empty.csv", index=False)
    assert gpu_table.table(str(tmp_path / "empty.csv")).startswith("no cell was measured on the GPU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA: the kernels would be timed")
def test_kernel_speed_needs_a_device(tmp_path: Path) -> None:
    script = [sys.executable, "scripts/gpu_kernels.py", str(tmp_path / "k.json")]
    found = subprocess.run(script, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (found.returncode, found.stderr.strip().splitlines()[-1]) == (2, "gpu_kernels: needs a CUDA device")
