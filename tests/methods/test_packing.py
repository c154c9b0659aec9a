from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.ledger import BLOCK, Ledger
from methods import packing
from methods.packing import RAW, WIDTHS, narrowest, pack, unpack, width_for

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
shapes = st.lists(st.integers(0, 5), min_size=0, max_size=4).map(tuple)


def counter() -> Tensor:
    return torch.zeros((), dtype=torch.int64)


def draw(shape: tuple[int, ...], width: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randint(1 << width, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def layouts(x: Tensor) -> list[Tensor]:
    """The same values in other memory layouts: permuted, with gaps, expanded."""
    result = [x, x.clone().permute(*reversed(range(x.dim()))) if x.dim() > 1 else x]
    if x.dim():
        result += [x.repeat_interleave(2, dim=-1)[..., ::2], x[:1].expand_as(x) if x.shape[0] else x]
    return result


@settings(max_examples=150, deadline=None)
@given(shape=shapes, width=st.sampled_from(WIDTHS), seed=st.integers(0, 99), dtype=st.sampled_from(FLOATS))
def test_unpacking_gives_back_what_was_packed(shape, width, seed, dtype):
    for x in layouts(draw(shape, width, seed, dtype)):
        violations = counter()
        packed = pack(x, width, violations)
        back = unpack(packed)
        assert int(violations) == 0
        assert back.dtype == x.dtype
        assert back.shape == x.shape
        assert torch.equal(back, x)
        assert packed.payload.numel() == width * math.ceil(x.numel() / 8)


@settings(max_examples=150, deadline=None)
@given(
    size=st.integers(1, 60),
    width=st.sampled_from(WIDTHS),
    dtype=st.sampled_from(FLOATS),
    bad=st.sampled_from([-1.0, 0.5, -0.25, 1.5, 256.0, 1e4, math.nan, math.inf, -math.inf, "above"]),
    data=st.data(),
)
def test_every_value_that_does_not_fit_is_counted(size, width, dtype, bad, data):
    x = draw((size,), width, size, dtype)
    where = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    x[list(where)] = float(1 << width) if bad == "above" else bad
    violations = counter()
    pack(x, width, violations)
    assert int(violations) == len(where)


def test_the_counter_accumulates_over_packs():
    violations = torch.zeros(2, dtype=torch.int64)
    for _ in range(2):
        pack(torch.tensor([0.0, 2.0, 3.0]), 1, violations[1])
    assert violations.tolist() == [0, 4]


def test_comparison_in_blocks_sees_every_element(monkeypatch):
    monkeypatch.setattr(packing, "COMPARE", 1)
    for position in range(50):
        x = torch.zeros(50)
        x[position] = 5
        violations = counter()
        pack(x, 1, violations)
        assert int(violations) == 1


def test_no_check_without_a_counter():
    assert unpack(pack(torch.tensor([1.0, 0.0]), 1)).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_memory_layout_is_kept(layout):
    x = draw((2, 3, 4, 5), 1, 0, torch.float32).to(memory_format=layout)
    assert unpack(pack(x, 1)).stride() == x.stride()


def test_raw_keeps_the_tensor_itself():
    x = torch.rand(4, requires_grad=True)
    packed = pack(x, RAW)
    assert packed.payload.data_ptr() == x.data_ptr()
    assert not unpack(packed).requires_grad


def test_a_change_in_place_of_a_raw_tensor_is_noticed():
    x = torch.rand(4)
    packed = pack(x, RAW)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified in place"):
        unpack(packed)


def test_unpacking_never_aliases_the_payload():
    packed = pack(torch.tensor([3, 4], dtype=torch.uint8), 8)
    unpack(packed).add_(1)
    assert unpack(packed).tolist() == [3, 4]


def test_unknown_width():
    with pytest.raises(ValueError, match=r"3 bits; allowed: \(1, 2, 4, 8\)"):
        pack(torch.zeros(2), 3)


@pytest.mark.parametrize(("top", "width"), [(1, 1), (2, 2), (3, 2), (4, 4), (15, 4), (16, 8), (255, 8), (256, RAW)])
def test_width_for(top, width):
    assert width_for(top) == width
    assert narrowest(torch.tensor([0.0, float(top)])) == width


@pytest.mark.parametrize("values", [[0.5], [-1.0, 1.0], [math.nan], [256.0], [1e30]])
def test_narrowest_of_other_values_is_raw(values):
    assert narrowest(torch.tensor(values)) == RAW


def test_narrowest_of_nothing():
    assert narrowest(torch.zeros(3, 0)) == 1


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", WIDTHS)
def test_packing_needs_well_under_one_more_copy(width, dtype):
    x = draw((4, 1 << 20), width, 0, dtype)
    ledger = Ledger()
    ledger.register("inputs", [x])
    violations = counter()
    with ledger:
        packed = pack(x, width, violations)
    extra = ledger.report().peak_bytes - ledger.report().static_bytes
    assert packed.payload.numel() == x.numel() * width // 8
    # The codes, one byte an element, and beside them the payload or a block's comparison.
    beside = max(packed.payload.numel() if width < 8 else 0, packing.COMPARE)
    assert extra <= x.numel() + beside + 4 * BLOCK


@pytest.mark.parametrize("width", WIDTHS)
def test_fake_tensors_take_the_same_bytes_and_layout(width):
    for x in layouts(draw((3, 5, 2), width, 0, torch.float32)):
        real = pack(x, width)
        stride = unpack(real).stride()
        with FakeTensorMode() as mode:
            fake = pack(mode.from_tensor(x), width, counter())
            assert fake.payload.shape == real.payload.shape
            assert unpack(fake).stride() == stride
