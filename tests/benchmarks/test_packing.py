"""Packing and unpacking of spikes: a whole tensor, and sample by sample as streamed layers keep it; beside plain copies.

Every round times the pair one after the other, so that drift of the machine's speed cancels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import pytest
import torch

from methods.packing import pack, unpack
from methods.streaming.rows import Rows

ROUNDS, WARM = 10, 2
SHAPE = (16, 8, 64, 32, 32)


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("side", ["pack", "unpack"])
def test_against_a_copy(benchmark, width, side):
    torch.set_num_threads(1)
    x = torch.randint(1 << width, SHAPE, generator=torch.Generator().manual_seed(0)).float()
    violations = torch.zeros((), dtype=torch.int64)
    rows, packed = Rows.empty(width, SHAPE, x.dtype, x.device), pack(x, width)
    for a in range(SHAPE[1]):
        rows.write(a, a + 1, x[:, a : a + 1])

    def write() -> None:
        for a in range(SHAPE[1]):
            rows.write(a, a + 1, x[:, a : a + 1], violations)

    def read() -> list[torch.Tensor]:
        return [rows.read(a, a + 1) for a in range(SHAPE[1])]

    whole: Callable[[], object] = (lambda: pack(x, width, violations)) if side == "pack" else (lambda: unpack(packed))
    by_sample: Callable[[], object] = write if side == "pack" else read
    pairs: list[tuple[float, float, float]] = []
    benchmark.pedantic(
        lambda: pairs.append((seconds(x.clone), seconds(whole), seconds(by_sample))), rounds=ROUNDS, warmup_rounds=WARM
    )
    one = median(b / a for a, b, _ in pairs[WARM:])
    two = median(c / a for a, _, c in pairs[WARM:])
    benchmark.extra_info.update(whole_ratio=one, by_sample_ratio=two, bytes=packed.payload.numel())
    print(f"\n{side} at {width} bits / copy: whole {one:.2f}, by sample {two:.2f}")
    assert int(violations) == 0
    assert torch.equal(rows.read(0, SHAPE[1]), x)
    assert torch.equal(unpack(packed), x)
    assert min(one, two) < 20


def test_a_kept_spike_takes_a_thirty_second_of_its_bytes():
    rows = Rows.empty(1, SHAPE, torch.float32, torch.device("cpu"))
    assert rows.payload.numel() * 32 == torch.Size(SHAPE).numel() * 4
