"""The allocator snapshot: written around a step, and readable by torch's own memory viewer.

A CPU build has no CUDA allocator to ask. What it would give is written down here in the structure that
``torch.cuda.memory._snapshot`` documents; all else is the real code: torch writes the file, torch's viewer reads it.
"""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.cuda import _memory_viz as viz

from harness import cuda

BASE, KEPT, GONE, SEGMENT = 0x7F5A00000000, 300 * 1024, 64 * 1024, 2 << 20
"""Address of a segment, bytes of a tensor that stays, of one that goes, and of the segment."""
FRAMES = [{"filename": "harness/build.py", "line": 42, "name": "step"}]


def taken() -> dict[str, Any]:
    """A snapshot of CUDA's allocator: a segment, two tensors in it, one of them freed."""
    blocks = [
        {"address": BASE, "size": KEPT, "requested_size": KEPT - 12, "state": "active_allocated", "frames": FRAMES},
        {"address": BASE + KEPT, "size": SEGMENT - KEPT, "requested_size": 0, "state": "inactive", "frames": []},
    ]
    segment = {
        "device": 0, "address": BASE, "total_size": SEGMENT, "stream": 0, "segment_type": "small",
        "segment_pool_id": (0, 0), "allocated_size": KEPT, "active_size": KEPT, "blocks": blocks,
    }  # fmt: skip
    trace = [
        {"action": action, "addr": address, "size": size, "stream": 0, "frames": FRAMES, "device": 0}
        for action, address, size in (
            ("segment_alloc", BASE, SEGMENT), ("alloc", BASE, KEPT), ("alloc", BASE + KEPT, GONE),
            ("free_requested", BASE + KEPT, GONE), ("free_completed", BASE + KEPT, GONE),
        )
    ]  # fmt: skip
    return {"segments": [segment], "device_traces": [trace]}


def test_its_structure_is_torchs() -> None:
    """Every key is one that torch documents for a snapshot, so that an invented one is noticed.

    Torch 2.11 writes ``segment_pool_id`` too, but does not document it.
    """
    known = inspect.getdoc(torch.cuda.memory._snapshot) or ""
    (segment,), (trace,) = taken()["segments"], taken()["device_traces"]
    keys = {*taken(), *segment, *segment["blocks"][0], *trace[0], *FRAMES[0]} - {"device", "segment_pool_id"}
    assert [key for key in sorted(keys) if f"{key}:" not in known] == []


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Switches of the allocator's history, whose arguments torch must know; its content is that of :func:`taken`."""
    calls: list[dict[str, Any]] = []
    known = inspect.signature(torch.cuda.memory._record_memory_history)

    def history(*args: Any, **kwargs: Any) -> None:
        calls.append(dict(known.bind(*args, **kwargs).arguments))

    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", history)
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda *args, **kwargs: taken())
    return calls


def test_torchs_viewer_reads_the_file(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    file = tmp_path / "suite" / "cell" / "run.snapshot.pickle"
    with cuda.snapshot(file):
        assert not file.exists()
    assert [call.get("enabled", "all") for call in asked] == ["all", None]
    data = pickle.loads(file.read_bytes())
    assert {"segments", "device_traces"} <= data.keys()
    assert data == taken()
    listed = viz.trace(data)
    assert "300.0KiB" in listed
    assert "64.0KiB" in listed
    assert "segments: 1" in viz.segsum(data)
    assert f"{KEPT - 12}" in viz.memory(data, format_flamegraph=lambda lines, *_: lines)
    for page in (viz.trace_plot(data), viz.segment_plot(data)):
        assert "MemoryViz" in page


def test_history_is_off_again_after_a_failure(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    with pytest.raises(ZeroDivisionError), cuda.snapshot(tmp_path / "s.pickle"):
        raise ZeroDivisionError
    assert asked[-1] == {"enabled": None}
    assert list(tmp_path.iterdir()) == []
