"""Packing kernels against the torch implementation, whose payload is the definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from methods import checkpoint_compress, packing
from tests.kernels.common import DEVICE, DTYPES, LAYOUTS, NEEDS, arranged, drawn
from tests.methods.nets import batch, build, prepared, run

pack_triton = pytest.importorskip("methods.kernels.pack_triton", reason=NEEDS)


def counter() -> torch.Tensor:
    return torch.zeros((), dtype=torch.int64, device=DEVICE)


@pytest.fixture
def by_torch(monkeypatch):
    """``packing`` on its fallback, on every device."""
    monkeypatch.setenv("SNNBENCH_KERNELS", "torch")


@pytest.fixture
def by_triton(monkeypatch):
    """``packing`` on the kernels, also under the interpreter."""
    monkeypatch.setattr(packing, "triton_at", lambda device: True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", packing.WIDTHS)
def test_payload_is_the_fallbacks_and_comes_back(width, dtype, by_torch):
    @drawn
    @given(st.integers(1, 9_000), st.integers(0, 1 << 16))
    def check(count: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        x = torch.randint(0, 1 << width, (count,), generator=draw).to(dtype).to(DEVICE)
        violations = counter()
        payload = pack_triton.pack(x, width, violations)
        assert torch.equal(payload, packing.pack(x, width).payload)
        assert int(violations) == 0
        back = pack_triton.unpack(payload, width, count, dtype)
        assert back.dtype == dtype
        assert torch.equal(back, x)

    check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", packing.WIDTHS)
def test_what_does_not_fit_is_counted_as_the_fallback_counts_it(width, dtype, by_torch):
    odd = [0.5, -1.0, -0.0, 0.0, 1.0, math.nan, math.inf, -math.inf, 3e4, 256.0, float(1 << width), (1 << width) - 1.0]

    @drawn
    @given(st.lists(st.sampled_from(odd), min_size=1, max_size=40))
    def check(values: list[float]) -> None:
        x = torch.tensor(values).to(dtype).to(DEVICE)
        ours, theirs = counter(), counter()
        payload = pack_triton.pack(x, width, ours)
        packing.pack(x, width, theirs)
        assert int(ours) == int(theirs)
        back = pack_triton.unpack(payload, width, len(values), dtype)
        assert torch.equal(back, torch.where(x == back, x, 0))  # a value that fits, or 0

    check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "repeated"])
def test_memory_layouts_through_packing(layout, dtype, by_triton):
    draw = torch.Generator().manual_seed(1)
    x = arranged(torch.randint(0, 4, (3, 2, 5, 4, 3), generator=draw).to(dtype).to(DEVICE), layout)
    violations = counter()
    kept = packing.pack(x, 2, violations)
    back = packing.unpack(kept)
    assert torch.equal(back, x)
    assert int(violations) == 0
    assert kept.payload.numel() == 2 * -(-x.numel() // 8)
    if layout != "gaps":
        assert back.stride() == x.stride()


def test_one_of_several_counters_is_raised(by_triton):
    violations = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    packing.pack(torch.tensor([0.0, 2.0, 1.0, 5.0], device=DEVICE), 1, violations[1])
    assert violations.tolist() == [0, 2, 0]


def test_nothing_to_pack(by_triton):
    empty = torch.zeros(0, 3, device=DEVICE)
    assert packing.unpack(packing.pack(empty, 4, counter())).shape == (0, 3)


def test_integers_keep_to_the_fallback(by_triton):
    x = torch.tensor([0, 1, 1], dtype=torch.int16, device=DEVICE)
    assert torch.equal(packing.unpack(packing.pack(x, 1, counter())), x)


def test_compressed_checkpoints_through_the_kernel(monkeypatch):
    """The method on the kernel: the fallback's gradients to the bit, and a plan that names the kernel."""
    packed = []
    kernel = pack_triton.pack
    monkeypatch.setattr(pack_triton, "pack", lambda *args: packed.append(args[1]) or kernel(*args))
    found = []
    for triton in (True, False):
        for module in (packing, checkpoint_compress):
            monkeypatch.setattr(module, "triton_at", lambda device, triton=triton: triton)
        method = checkpoint_compress.CheckpointCompress()
        x, y = (value.to(DEVICE) for value in batch())
        model = prepared(method, build(seed=3).to(DEVICE), x)
        found.append(run(method, model, x, y))
        assert method.plan()["kernel"] == ("triton" if triton else "torch")
        assert bool(packed) == triton
        packed.clear()
    ours, theirs = found
    assert ours.gradients.keys() == theirs.gradients.keys()
    assert all(torch.equal(ours.gradients[name], value) for name, value in theirs.gradients.items())
    assert torch.equal(ours.out.loss, theirs.out.loss)
