"""The table that holds the ledger against CUDA's allocator, and its links to snapshots."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from harness.store import Store
from reports.about import about
from reports.allocator import HEADS, allocator, snapshots
from reports.collect import collect
from reports.groups import Item
from reports.labels import Labels
from reports.page import Suite, render
from tests.harness.samples import sample_memory, sample_record, sample_spec

M = 1 << 20


def item(path: Path, **memory: Any) -> Item:
    spec = sample_spec(device="cuda")
    return Item(path, sample_record(spec=spec, memory=sample_memory(**memory)))


def row(found: Item) -> dict[str, Any]:
    labels = Labels([found.record.spec])
    (cells,) = allocator([found], labels).rows
    return {head.title: cell for head, cell in zip(HEADS, cells, strict=True)}


def test_what_is_explained_and_what_is_not(tmp_path: Path) -> None:
    facts = {"modelled_allocated_bytes": 96 * M, "workspace_bytes": 8 * M, "nvml_device_bytes": 900 * M,
             "nvml_device_delta_bytes": 600 * M}  # fmt: skip
    found = row(item(tmp_path / "r.json", peak_live_bytes=95 * M, cuda_allocated_bytes=106 * M,
                     cuda_reserved_bytes=128 * M, cuda_requested_bytes=94 * M, nvml_process_bytes=None,
                     kernel_path="lif triton", cuda_facts=facts))  # fmt: skip
    assert found["difference %"].value == pytest.approx(11 / 106)
    assert found["unexplained %"].value == pytest.approx(2 / 106)
    assert "differs" in found["difference %"].marks
    assert not found["unexplained %"].marks
    shown = {name: found[f"{name} MiB"].value for name in ("ledger", "modelled", "workspaces", "reserved")}
    assert shown == {"ledger": 95 * M, "modelled": 96 * M, "workspaces": 8 * M, "reserved": 128 * M}
    assert found["process MiB"].value is None
    assert found["device rise MiB"].value == 600 * M
    assert found["kernels"].text == "lif triton"
    assert found["snapshot"].links == ()


def test_a_method_that_the_ledger_cannot_count(tmp_path: Path) -> None:
    null = ("split", "peak_activation_bytes", "saved_bytes", "static_bytes", "cuda_reserved_bytes",
            "cuda_requested_bytes", "nvml_process_bytes")  # fmt: skip
    reasons = dict.fromkeys(("peak_live_bytes", *null), "compiled code")
    found = row(item(tmp_path / "r.json", peak_live_bytes=None, cuda_allocated_bytes=10 * M,
                     cuda_facts={"workspace_bytes": M}, reasons=reasons,
                     **dict.fromkeys(null)))  # fmt: skip
    assert found["ledger MiB"].title == "compiled code"
    assert found["difference %"].value is found["unexplained %"].value is None
    assert found["allocator MiB"].value == 10 * M


def test_cells_of_a_cpu_are_not_in_it(tmp_path: Path) -> None:
    cpu = Item(tmp_path / "r.json", sample_record())
    assert list(allocator([cpu], Labels([cpu.record.spec])).rows) == []


def test_the_page_links_the_snapshot_and_shows_the_difference(tmp_path: Path) -> None:
    facts = {"modelled_allocated_bytes": 6 * M, "snapshot": "20261121T065101Z-0a1b2c3d.snapshot.pickle"}
    spec = sample_spec(device="cuda")
    memory = sample_memory(cuda_allocated_bytes=6 * M, cuda_facts=facts)
    record = sample_record(spec=spec, memory=memory, suite="gpu-memory")
    store = Store(tmp_path / "store")
    store.write(record)
    (found,) = collect([tmp_path / "store"]).suites["gpu-memory"]
    suite = Suite("gpu-memory", [found], 0, about("gpu-memory"))
    page = render(suite, tmp_path / "html")
    assert "Ledger against allocator" in page
    assert ".snapshot.pickle" not in page  # no link to a file that is not there
    found.path.with_name(str(facts["snapshot"])).write_bytes(pickle.dumps({}))
    assert [one.path.name for one in snapshots([found])] == [facts["snapshot"]]
    page = render(suite, tmp_path / "html")
    assert f'href="../store/gpu-memory/{spec.hash}/{facts["snapshot"]}">snapshot</a>' in page
