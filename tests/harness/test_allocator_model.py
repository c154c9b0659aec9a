"""The model of CUDA's caching allocator: torch's rules, and the ledger's storages in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import memory
from harness.cuda import CudaPeaks, phase_peaks, snapshot
from harness.devices.allocator import CachingAllocator, replay, rounded, segment_size
from harness.ledger import BLOCK, Ledger
from tests.harness.benches import make_bench, make_spec

K, M = 1 << 10, 1 << 20


@pytest.mark.parametrize(
    ("size", "block", "segment"),
    [
        (1, 512, 2 * M), (512, 512, 2 * M), (513, 1024, 2 * M), (M, M, 2 * M), (M + 1, M + 512, 20 * M),
        (10 * M - 1, 10 * M, 10 * M), (10 * M, 10 * M, 10 * M), (10 * M + 1, 10 * M + 512, 12 * M),
        (33 * M, 33 * M, 34 * M),
    ],
)  # fmt: skip
def test_rounding(size: int, block: int, segment: int) -> None:
    assert rounded(size) == block
    assert segment_size(rounded(size)) == segment
    allocator = CachingAllocator()
    allocator.malloc(size)
    assert allocator.reserved == segment


def test_a_large_block_keeps_what_is_not_worth_cutting() -> None:
    allocator = CachingAllocator()
    allocator.malloc(33 * M)  # one MiB is left of the segment: not more than a MiB, so it stays with the block
    assert allocator.allocated == 34 * M
    allocator.malloc(33 * M - 512)
    assert allocator.allocated == 34 * M + 33 * M - 512


def test_the_smallest_free_block_is_taken_and_neighbours_join() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.malloc(512 * K) for _ in range(4)]  # fill one small segment
    assert allocator.reserved == 2 * M
    allocator.free(blocks[1])
    assert allocator.malloc(512 * K).address == blocks[1].address
    allocator.free(blocks[2])
    allocator.free(blocks[3])
    assert allocator.malloc(M).address == blocks[2].address  # the two as one
    assert (allocator.reserved, allocator.allocated) == (2 * M, 2 * M)


lives = st.lists(
    st.tuples(st.integers(0, 40 * M), st.integers(0, 30), st.one_of(st.none(), st.integers(1, 30))), max_size=40
).map(lambda rows: [(size, born, None if length is None else born + length) for size, born, length in rows])


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(lives)
def test_bounds_that_hold_for_every_history(history: list[tuple[int, int, int | None]]) -> None:
    model = replay(history)
    events = sorted({born for _, born, _ in history})
    live = [
        sum(-(-size // 512) * 512 for size, born, died in history if born <= at and (died is None or died > at))
        for at in events
    ]
    assert model.peak_allocated >= max(live, default=0)
    assert model.peak_allocated <= max(live, default=0) + 2 * M * len(history)
    assert model.peak_reserved >= model.peak_allocated
    left = sum(-(-size // 512) * 512 for size, _, died in history if died is None)
    assert left <= model.allocated <= left + 2 * M * len(history)


def test_the_ledgers_storages_in_the_model() -> None:
    ledger = Ledger()
    held = torch.ones(100)
    ledger.register("inputs", [held])
    with ledger:
        kept = torch.ones(3 * M // 4)  # 3 MiB
        del kept
        again = torch.ones(3 * M // 4)
        small = again[:5].clone()
    report = ledger.report()
    assert [(size, born > 0, died is None) for size, born, died in report.lives] == [
        (512, False, True), (3 * M, True, False), (3 * M, True, True), (BLOCK, True, True),
    ]  # fmt: skip
    model = replay(report.lives)
    assert model.peak_allocated == report.peak_bytes == 3 * M + 1024
    assert model.peak_reserved == 22 * M
    assert small.numel() == 5
    facts = memory._cuda_facts(report, CudaPeaks(workspace=8 * M, device=1 << 30))
    assert facts == {
        "workspace_bytes": 8 * M, "nvml_device_bytes": 1 << 30,
        "modelled_allocated_bytes": 3 * M + 1024, "modelled_reserved_bytes": 22 * M,
    }  # fmt: skip
    assert memory._cuda_facts(None, CudaPeaks()) == {}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_steps_facts_on_a_device(tmp_path: Path) -> None:
    spec = make_spec(device="cuda", batch=64, net={"channels": [64, 64]}, sample=[3, 32, 32])
    with phase_peaks("cuda") as peaks:
        block, _, _ = memory.measure(make_bench(spec), snapshot=tmp_path / "s.pickle")
    assert (tmp_path / "s.pickle").stat().st_size > 0
    assert block.peak_live_bytes is not None
    assert block.cuda_allocated_bytes is not None
    assert peaks["allocated_bytes"] >= block.cuda_allocated_bytes
    explained = block.cuda_facts["modelled_allocated_bytes"] + block.cuda_facts.get("workspace_bytes", 0)
    assert explained == pytest.approx(block.cuda_allocated_bytes, rel=0.03)


def test_on_a_cpu_there_is_nothing_to_tell(tmp_path: Path) -> None:
    with phase_peaks("cpu") as peaks, snapshot(None):
        block, _, _ = memory.measure(make_bench(make_spec()), snapshot=tmp_path / "s.pickle")
    assert (peaks, block.cuda_facts, list(tmp_path.iterdir())) == ({}, {}, [])
    assert block.reasons["nvml_process_bytes"] == "no CUDA device in this cell"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_model_is_the_device() -> None:
    draw = torch.Generator().manual_seed(0)
    sizes = (
        torch.randint(1, 30 * M, (60,), generator=draw).tolist() + torch.randint(1, M, (60,), generator=draw).tolist()
    )
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    model, tensors, blocks = CachingAllocator(), [], []
    for index, size in enumerate(sizes):
        tensors.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        blocks.append(model.malloc(size))
        if index % 3 == 2:
            del tensors[index // 2]
            model.free(blocks.pop(index // 2))
        assert torch.cuda.memory_allocated() - start == model.allocated
    assert torch.cuda.max_memory_allocated() - start == model.peak_allocated
