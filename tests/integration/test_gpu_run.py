"""The one command for a GPU machine, on whatever machine the tests run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from harness import registry
from harness.record import Record
from harness.spec import Ref
from harness.store import Store
from harness.store.frame import export, frame
from harness.suite.loading import load
from scripts import gpu_check, gpu_table
from tests.harness.samples import sample_memory, sample_record, sample_spec, sample_timing

ROOT = Path(__file__).parents[2]


def command(*args: str, out: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OUT": str(out), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        ["bash", "scripts/gpu_run.sh", *args],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        timeout=timeout,
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
        (["--hours", "1"],
         "gpu_run: unknown option --hours (allowed: --minutes M, --wheels DIR, --store DIR, "
         "--device cuda|cpu)"),
        (["--device", "tpu"], "gpu_run: --device takes cuda or cpu, not 'tpu'"),
    ],
)  # fmt: skip
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


WITH_THE_LISTED_PACKAGES_ALONE = """
import importlib.metadata as metadata, re, sys
from packaging.requirements import Requirement

def plain(name):
    return re.sub("[-_.]+", "-", name).lower()

carried, usual = (text.split() for text in sys.argv[1:])
allowed, waiting = {"snnbench", "setuptools", *map(plain, carried)}, ["torch", "triton", *usual]
while waiting:  # what a package requires came with it, but with --wheels nothing does
    name = plain(waiting.pop())
    if name not in allowed:
        allowed.add(name)
        try:
            needs = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:
            continue
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
owners = metadata.packages_distributions()
forbidden = {top for top, names in owners.items() if not allowed & {plain(name) for name in names}}
assert {"matplotlib", "seaborn", "librosa", "pytest"} <= forbidden
for name in [name for name in sys.modules if name.split(".")[0] in forbidden]:
    del sys.modules[name]

plugins = [
    entry for group in ("methods", "models", "datasets") for entry in metadata.entry_points(group=f"snnbench.{group}")
    if entry.value.split(".")[0] in ("methods", "suites", "harness")
]
assert len(plugins) > 50

class WithoutThem:
    finders = list(sys.meta_path)

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in forbidden:
            return None
        return next((spec for spec in (f.find_spec(name, path, target) for f in self.finders) if spec), None)

sys.meta_path[:] = [WithoutThem()]
from suites.torchvision_shim import ensure_torchvision
ensure_torchvision()
import harness.cli, harness.worker, harness.store.frame, pynvml
import tonic, sklearn.datasets, torchvision.datasets, torchvision.transforms.v2
from spikingjelly.activation_based.model import sew_resnet, spiking_vgg
for entry in plugins:
    entry.load()
import io, pandas
pandas.DataFrame({"a": [1]}).to_parquet(io.BytesIO())
"""


def test_no_cell_imports_a_package_that_the_check_does_not_ask_for() -> None:
    listed = map(" ".join, (gpu_check.CARRIED, gpu_check.USUAL))
    script = [sys.executable, "-c", WITH_THE_LISTED_PACKAGES_ALONE, *listed]
    found = subprocess.run(script, cwd=ROOT, text=True, capture_output=True, timeout=200)
    assert found.returncode == 0, found.stderr[-2000:]


def test_a_missing_package_is_named_as_pip_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu_check.CARRIED, "no-such-package", "no_such_module")
    assert (gpu_check.problem("cpu") or "").startswith("not installed: no-such-package (docs/gpu.md ")


def test_the_documented_command_brings_what_such_a_machine_lacks() -> None:
    command = (ROOT / "docs" / "gpu.md").read_text().split("pip download", 1)[1].split("\n\n", 1)[0]
    assert set(gpu_check.CARRIED) <= set(command.split())


def test_the_suites_load_and_one_has_every_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    gpu_check.prepare(tmp_path)
    for name in gpu_check.SUITES:
        suite = load(tmp_path / f"{name}.toml")
        assert suite.name == name
        assert (suite.profile("gpu").device, suite.profile("cpu").device) == ("cuda", "cpu")
        for profile in ("gpu", "cpu"):
            assert suite.expand(profile)
    (line,) = [row for row in (tmp_path / "gpu-memory.toml").read_text().splitlines() if "gpu_check.py puts" in row]
    names = json.loads(line.split("=")[1].split("#")[0])
    assert names == sorted(registry.entries("methods"))


def cuda_record(label: str, peak: int, seconds: float, number: int, **changes: Any) -> Record:
    """A measured cell of the suite that compares methods."""
    name, _, options = label.partition(" ")
    key, _, value = options.partition("=")
    method = Ref(name=name, options={key: int(value) if value.isdigit() else value} if options else {})
    seen = dict.fromkeys(("cuda_reserved_bytes", "cuda_requested_bytes"), peak)
    return sample_record(
        suite=changes.pop("suite", "gpu-versus"),
        run_id=f"20261121T065101Z-{number:08x}",
        spec=sample_spec(device="cuda", method=method),
        memory=sample_memory(**seen, cuda_allocated_bytes=peak, nvml_process_bytes=1 << 30),
        timing=sample_timing(energy_per_step_j=0.25, clock="cuda_event", step_time_s=seconds),
        **changes,
    )


def exported(tmp_path: Path, *records: Record) -> str:
    for record in records:
        Store(tmp_path / "store").write(record)
    export(frame(Store(tmp_path / "store").records()), tmp_path / "table.csv")
    return str(tmp_path / "table.csv")


def test_the_table_of_cells(tmp_path: Path) -> None:
    path = exported(tmp_path, cuda_record("checkpoint", 8 << 20, 0.02, 1))
    text = gpu_table.text(path)
    row = text.splitlines()[1]
    assert " 8.0 " in row
    assert " 0.25" in row
    assert "1 ok" in text
    assert "rehearsal" not in text
    empty = pd.read_csv(path).iloc[:0]
    empty.to_csv(tmp_path / "empty.csv", index=False)
    text = gpu_table.text(str(tmp_path / "empty.csv"))
    assert text.startswith("no cell was measured on the GPU")
    assert {line.split()[-1] for line in text.split("\n\n")[-1].splitlines()[1:]} == {
        "-"
    }  # no goal is judged on nothing


def verdicts(goals: list[gpu_table.Goal]) -> dict[tuple[str, str], str]:
    return {(goal.name, goal.wanted.split()[0]): goal.verdict for goal in goals}


@pytest.mark.parametrize(("slow", "big", "met"), [(1.0, 1, True), (1.3, 1, False), (1.0, 3, False)])
def test_goals_on_less_memory(tmp_path: Path, slow: float, big: int, met: bool) -> None:
    G = 1 << 30
    path = exported(
        tmp_path, cuda_record("bptt", 16 * G, 0.1, 1), cuda_record("streamed budget=min", big * G, 0.1 * slow, 2),
        cuda_record("streamed budget=0.25x", big * 4 * G, 0.1 * slow, 3),
        cuda_record("checkpoint-compress level=O4", big * G, 0.1 * slow, 4),
        cuda_record("sj-memopt level=4", 2 * G, 0.11, 5),
    )  # fmt: skip
    rows = pd.read_csv(path)
    found = {(g.name, g.wanted): g.verdict for g in gpu_table.goals(rows, None, None) if g.name != "fused LIF"}
    judged = {key: value for key, value in found.items() if key[0] in ("streamed", "checkpoint-compress O4")}
    assert len(judged) == 5
    assert set(judged.values()) == ({"met"} if met else {"missed"})


def test_goals_on_ledger_kernels_and_plan(tmp_path: Path) -> None:
    peak = sample_memory().peak_live_bytes
    assert peak is not None
    near, far = cuda_record("checkpoint", int(peak * 1.02), 0.02, 1), cuda_record("bptt", int(peak * 1.3), 0.02, 2)
    rows = pd.read_csv(exported(tmp_path, near))
    kernels = {"rows": [{"kernel": "LIF forward", "dtype": "float32", "of_copy_bandwidth": 0.8},
                        {"kernel": "pack 1 bit", "dtype": "float32", "of_copy_bandwidth": 0.6}]}  # fmt: skip
    plan = {"device": "cuda", "rows": [{"verdict": "confirmed"}, {"verdict": "-"}]}
    found = verdicts(gpu_table.goals(rows, kernels, plan))
    assert found["ledger against allocator, exact methods", "within"] == "met"
    assert found["fused LIF", ">="] == "met"
    assert found["packing", ">="] == "missed"
    assert found["plan's largest batch", "fits;"] == "met"
    rows = pd.read_csv(exported(tmp_path, far))
    plan["rows"][0]["verdict"] = "loose"  # type: ignore[index]
    found = verdicts(gpu_table.goals(rows, None, plan))
    assert found["ledger against allocator, exact methods", "within"] == "missed"
    assert found["plan's largest batch", "fits;"] == "missed"
    found = verdicts(gpu_table.goals(rows, None, plan | {"device": "cpu"}))
    assert found["plan's largest batch", "fits;"] == "-"  # a rehearsal confirms nothing


@pytest.mark.slow
@pytest.mark.timeout(620)
def test_a_rehearsal_of_the_whole_run_on_a_cpu(tmp_path: Path) -> None:
    """The same script, the same stages, tiny sizes: nothing fails, and what an abort would leave is there."""
    out = tmp_path / "out"
    found = command("--device", "cpu", "--minutes", "9", "--store", str(tmp_path / "store"), out=out, timeout=580)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-2000:]
    names = {path.name for path in out.iterdir()}
    assert names == {"doctor.txt", "plan.json", "run.log", "table.csv", "table.txt", "records.tgz"}
    assert len(names | {"kernel_tests.txt", "kernels.json"}) <= 8
    with tarfile.open(out / "records.tgz") as archive:
        held = [name for name in archive.getnames() if name.endswith(".json")]
    suites = {name.split("/")[1] for name in held}
    assert suites == set(gpu_check.SUITES)
    (row,) = json.loads((out / "plan.json").read_text())["rows"]
    assert (row["verdict"], row["seen"]["status"], row["above_seen"]["status"]) == ("confirmed", "ok", "oom")
    assert "rehearsal" in row["above_seen"]["reason"]
    text = (out / "table.txt").read_text()
    assert text in found.stdout
    assert "A rehearsal on a CPU: these numbers mean nothing." in text
    goals = text.split("\n\n")[-1].splitlines()[1:]
    assert len(goals) == 9
    assert all(goal.endswith("-") for goal in goals)  # whatever was seen, a rehearsal meets and misses nothing


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA: the kernels would be timed")
def test_kernel_speed_needs_a_device(tmp_path: Path) -> None:
    script = [sys.executable, "scripts/gpu_kernels.py", str(tmp_path / "k.json")]
    found = subprocess.run(script, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (found.returncode, found.stderr.strip().splitlines()[-1]) == (2, "gpu_kernels: needs a CUDA device")
