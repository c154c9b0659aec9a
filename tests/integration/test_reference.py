"""Reference results: from a machine's store to a small one, the README's table and the report; nothing where none is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.record import Record
from harness.spec import Ref
from harness.store import Store
from reports.collect import collect
from reports.write import write
from scripts import compact_store, reference_table
from tests.harness.samples import sample_memory, sample_provenance, sample_record, sample_spec, sample_timing

M = 1 << 20
MACHINE = "1x-invented-gpu"


def measured(method: str, number: int, peak: int, **changes: object) -> Record:
    """A cell of an invented GPU."""
    facts = sample_provenance() | {"gpu": {"devices": [{"name": "Invented GPU"}], "driver": "1.0", "cuda": "13.0"}}
    seen = dict.fromkeys(("cuda_reserved_bytes", "cuda_requested_bytes", "nvml_process_bytes"), peak)
    fields = {
        "suite": "gpu-versus",
        "spec": sample_spec(device="cuda", method=Ref(name=method, options={})),
        "run_id": f"20261121T065101Z-{number:08x}",
        "memory": sample_memory(**seen, cuda_allocated_bytes=peak, cuda_facts={"snapshot": "s.pickle"}),
        "timing": sample_timing(
            clock="cuda_event", energy_per_step_j=0.5, step_time_s=0.04 * number, ratio=1.0 * number
        ),
        "provenance": facts,
    }
    return sample_record(**(fields | changes))


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A committed folder, made as a machine's run would be."""
    source = Store(tmp_path / "run")
    for record in (measured("bptt", 1, 90 * M), measured("checkpoint", 2, 30 * M)):
        source.write(record)
    source.write(measured("sltt", 3, 1, status="oom", memory=None, timing=None))
    source.write(measured("offload", 4, 1, status="error", memory=None, timing=None))
    source.write(sample_record(spec=sample_spec(predicted=True, phases=("memory",))))
    folder = tmp_path / "reference"
    assert compact_store.main(source.root, folder / MACHINE, predicted=False) == 3
    compact_store.main(source.root, folder / "predicted")
    return folder


def test_measurements_are_copied_small(reference: Path) -> None:
    files = list((reference / MACHINE).glob("*/*/*.json"))
    assert len(files) == 3
    for file in files:
        found = json.loads(file.read_text())
        assert found["provenance"]["system"]["host"] is None
        assert found["provenance"]["gpu"]["driver"] == "1.0"
        if found["memory"]:
            assert len(found["memory"]["timeline"]) <= compact_store.POINTS
            assert "snapshot" not in found["memory"]["cuda_facts"]
            assert found["timing"]["samples_s"] == sample_timing().samples_s


def test_the_readmes_table_names_machine_date_and_commit(reference: Path) -> None:
    text = f"# Title\n\n{reference_table.BEGIN}\n{reference_table.END}\n\n## Next\n"
    page = reference_table.page(text, reference)
    head = next(line for line in page.splitlines() if line.startswith("**"))
    for part in (MACHINE, "Invented GPU", "2026-11-21", "0f0f0f0f0f", "torch 2.13.0+cpu", "gpu-versus"):
        assert part in head
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 3
    (fast,) = [row for row in rows if row.startswith("| bptt ")]
    assert "| 90.0 | 40.0 | 1.00 x bptt | 0.5 |" in fast
    (lost,) = [row for row in rows if row.startswith("| sltt ")]
    assert "| oom |" in lost
    assert page.endswith("\n\n## Next\n")
    assert reference_table.page(page, reference) == page
    (reference / MACHINE).rename(reference / "predicted-too")
    assert "predicted-too" in reference_table.page(page, reference)


def test_without_a_machine_nothing_is_shown(tmp_path: Path, reference: Path) -> None:
    text = f"# Title\n\n{reference_table.BEGIN}\n{reference_table.END}\n"
    assert reference_table.page(text, tmp_path / "none") == text
    filled = reference_table.page(text, reference)
    for file in (reference / MACHINE).glob("*/*/*.json"):
        file.unlink()
    assert reference_table.page(filled, reference) == text
    assert reference_table.tables(reference) == ""


def test_the_report_takes_the_store(reference: Path, tmp_path: Path) -> None:
    write(collect([reference / MACHINE]), tmp_path / "html")
    page = (tmp_path / "html" / "gpu-versus.html").read_text()
    assert "Invented GPU" in page
    assert "Ledger against allocator" in page
    assert page.count("90.0") >= 2


def test_the_readme_shows_what_is_committed() -> None:
    text = reference_table.README.read_text("utf-8")
    assert reference_table.BEGIN in text
    assert reference_table.page(text) == text, "run: python scripts/reference_table.py"
