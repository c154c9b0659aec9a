"""Kernels of streamed layers: rows of packed values, and normalisation, neuron and packing in one launch."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import surrogate
from torch import Tensor

from methods.kernels import lif_stream
from methods.kernels.lif_stream import Affine
from methods.kernels.lif_torch import Neuron
from methods.packing import RAW, WIDTHS
from methods.streaming import rows
from methods.streaming.rows import Rows
from methods.streaming.unit import Mode
from tests.kernels.common import DEVICE, DTYPES, GRADIENT, NEEDS, Case, arranged, cases, few, relative
from tests.methods.nets import batch, build, difference, plif, prepared, run
from tests.methods.test_streamed import SEW, forced

rows_triton = pytest.importorskip("methods.kernels.rows_triton", reason=NEEDS)
stream_triton = pytest.importorskip("methods.kernels.stream_triton", reason=NEEDS)
LAYOUTS = ("contiguous", "channels_last", "permuted", "gaps", "repeated")
neurons = st.builds(
    Neuron,
    tau=st.sampled_from([None, 1.7, 2.0]),
    decay_input=st.booleans(),
    v_threshold=st.sampled_from([1.0, 0.7]),
    v_reset=st.sampled_from([None, 0.0, -0.3]),
    detach_reset=st.booleans(),
    surrogate=st.builds(lambda kind: kind(alpha=1.3), st.sampled_from([surrogate.ATan, surrogate.Sigmoid])),
)


class Path:
    """Which implementation runs: ``with path(True): ...`` the kernels, ``with path(False): ...`` torch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch

    def __call__(self, triton: bool) -> None:
        for module in (rows, lif_stream):
            self._patch.setattr(module, "triton_at", lambda device: triton)


@pytest.fixture
def by(monkeypatch: pytest.MonkeyPatch) -> Path:
    return Path(monkeypatch)


def integers(case: Case, top: int, offset: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(case.seed + offset)
    return arranged(torch.randint(0, top + 1, case.shape, generator=draw).to(case.dtype).to(DEVICE), case.layout)


def counter() -> Tensor:
    return torch.zeros((), dtype=torch.int64, device=DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_rows_are_the_fallbacks_and_come_back(width: int, dtype: torch.dtype, by: Path) -> None:
    @few
    @given(cases((dtype,)), st.data())
    def check(case: Case, data: Any) -> None:
        x = integers(case, (1 << width) - 1)
        a = data.draw(st.integers(0, x.shape[1] - 1))
        b = data.draw(st.integers(a + 1, x.shape[1]))
        found = []
        for triton in (True, False):
            by(triton)
            kept, wrong = Rows.empty(width, tuple(x.shape), dtype, DEVICE), counter()
            kept.payload.zero_()
            kept.write(a, b, x[:, a:b], wrong)
            back = kept.read(a, b)
            assert torch.equal(back, x[:, a:b])
            assert back.is_contiguous()
            assert int(wrong) == 0
            found.append(kept.payload)
        assert torch.equal(*found)

    check()


@pytest.mark.parametrize("width", WIDTHS)
def test_what_a_row_cannot_hold_is_counted(width: int, by: Path) -> None:
    values = torch.tensor([0.5, -1.0, -0.0, 1.0, torch.nan, torch.inf, 1 << width, (1 << width) - 1, 0.0, 0.0, 3e4])
    x = values.repeat(2, 3, 1).to(DEVICE)
    found = []
    for triton in (True, False):
        by(triton)
        kept, wrong = Rows.empty(width, tuple(x.shape), x.dtype, DEVICE), counter()
        kept.write(0, 3, x, wrong)
        found.append(int(wrong))
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_is_that_of_the_values(dtype: torch.dtype, by: Path) -> None:
    widths = st.sampled_from((RAW, *WIDTHS))

    @few
    @given(cases((dtype,)), widths, widths, widths)
    def check(case: Case, one: int, two: int, out: int) -> None:
        by(True)
        values = [integers(case, min((1 << (width or 3)) - 1, 90), offset) for offset, width in enumerate((one, two))]
        kept = [Rows.empty(width, case.shape, dtype, DEVICE) for width in (one, two)]
        for value, room in zip(values, kept, strict=True):
            room.write(0, case.shape[1], value)
        total, wrong = Rows.empty(out, case.shape, dtype, DEVICE), counter()
        total.add(*kept, wrong)
        wanted = values[0] + values[1]
        if out == RAW:
            assert torch.equal(total.payload, wanted)
            return
        fits = wanted < 1 << out
        assert int(wrong) == int((~fits).sum())
        assert torch.equal(total.read(0, case.shape[1]), torch.where(fits, wanted, 0))

    check()


def affine(case: Case, per_step: bool) -> Affine:
    steps, _, channels = case.shape[:3]
    draw = torch.Generator().manual_seed(case.seed)
    wide = torch.promote_types(case.dtype, torch.float32)
    shape = (2, steps if per_step else 1, 1, channels, 1, 1)
    scale, shift = torch.randn(shape, generator=draw, dtype=torch.float64).to(wide).to(DEVICE)
    return Affine(scale + 1, shift)


def rate(case: Case, learnt: bool) -> Tensor | None:
    wide = torch.promote_types(case.dtype, torch.float32)
    return torch.tensor(0.37, dtype=wide, device=DEVICE) if learnt else None


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_launch_is_normalisation_neuron_and_packing(dtype: torch.dtype, by: Path) -> None:
    @few
    @given(cases((dtype,), LAYOUTS), neurons, st.sampled_from([None, False, True]), st.booleans(), st.booleans())
    def check(case: Case, constants: Neuron, per_step: bool | None, learnt: bool, given_v0: bool) -> None:
        constants = dataclasses.replace(constants, tau=None) if learnt else constants
        y, q = case.normal(2.0), rate(case, learnt)
        how = None if per_step is None else affine(case, per_step)
        v0: Tensor | float = case.normal(0.3, offset=1)[0].clone() if given_v0 else 0.0
        found = []
        for triton in (True, False):
            by(triton)
            u, spikes = torch.empty(case.shape, dtype=dtype, device=DEVICE), torch.empty_like(y.contiguous())
            lif_stream.charge_and_fire(y, u, how, v0, q, constants, spikes)
            found.append((u, spikes))
        for ours, theirs in zip(*found, strict=True):
            assert torch.equal(ours, theirs)
        by(True)
        codes = torch.empty(case.shape, dtype=torch.uint8, device=DEVICE)  # a neuron that is kept at more bits
        lif_stream.charge_and_fire(y, torch.empty_like(spikes), how, v0, q, constants, codes)
        assert torch.equal(codes.to(dtype), spikes)
        if lif_stream.fused(y):
            kept, over = Rows.empty(1, case.shape, dtype, DEVICE), y.clone(memory_format=torch.contiguous_format)
            lif_stream.fire_bits(over, over, how, v0, q, constants, kept.payload)
            assert torch.equal(kept.read(0, case.shape[1]), spikes)
            assert torch.equal(over, u)  # the membranes took the input's memory

    check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_backward_over_the_membranes_or_over_the_gradient(dtype: torch.dtype, by: Path) -> None:
    @few
    @given(cases((dtype,)), neurons, st.booleans(), st.booleans())
    def check(case: Case, constants: Neuron, learnt: bool, over_grad: bool) -> None:
        constants = dataclasses.replace(constants, tau=None) if learnt else constants
        q, found = rate(case, learnt), []
        u = case.normal(2.0).contiguous()
        whole = Case((case.shape[0], case.shape[1] + 2, *case.shape[2:]), dtype, "contiguous", case.seed).normal()
        for triton in (True, False):
            by(triton)
            held, room = whole.clone(), u.clone()
            grad = held[:, 1:-1] if over_grad else case.normal(offset=2)
            total = lif_stream.backward(grad, room, 0.0, q, constants, into=grad if over_grad else None)
            found.append((grad if over_grad else room, total))
            assert torch.equal(held[:, 0], whole[:, 0])
            assert torch.equal(held[:, -1], whole[:, -1])
        for ours, theirs in zip(*found, strict=True):
            assert (ours is None) == (theirs is None) == (theirs is None)
            if theirs is not None:
                assert ours.dtype == theirs.dtype
                size = max(float(theirs.double().norm()), 1e-2 * theirs.numel() ** 0.5)
                assert float((ours.double() - theirs.double()).norm()) <= 2 * GRADIENT[dtype] * size

    check()


class Unknown(surrogate.ATan):
    """A surrogate that the kernels have no formula for."""


def test_another_surrogate_goes_through_torch(by: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    u, grad = (torch.randn(3, 2, 8, generator=draw).to(DEVICE) for _ in range(2))
    found = []
    for kind in (surrogate.ATan, Unknown):
        by(True)
        room = u.clone()
        lif_stream.backward(grad, room, 0.0, None, Neuron(2.0, True, 1.0, 0.0, False, kind()))
        found.append(room)
    assert relative(*found) <= 1e-6
    assert found[0].norm() > 0


@pytest.mark.parametrize("mode", [Mode(2, "x", 2, "twice"), Mode(3, "x", 1, "all"), Mode(2, "u")])
def test_a_streamed_network_has_the_fallbacks_gradients(mode: Mode, by: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions, normalisation, LIF and PLIF, pooling and an addition of spikes: forward, widths, backward."""
    launched: Counter[str] = Counter()
    for module, name in ((rows_triton, "move"), (stream_triton, "charge_and_fire"), (stream_triton, "backward")):
        monkeypatch.setattr(module, name, counted(getattr(module, name), launched))
    found, launches = [], []
    for triton in (True, False):
        by(False)  # planning runs on fake tensors of a CPU, on a GPU machine too
        torch.manual_seed(0)
        model = build(plif(), middle=SEW).double().to(DEVICE)
        x, y = (value.to(DEVICE) for value in batch(T=3, N=3, dtype=torch.float64))
        method = forced(model, mode)
        model = prepared(method, model, x)
        by(triton)
        launched.clear()
        found.append(run(method, model, x, y))
        launches.append(dict(launched))
    ours, theirs = found
    assert launches[0].keys() == {"move", "charge_and_fire", "backward"}
    assert launches[1] == {}
    assert difference(ours.gradients, theirs.gradients) <= 1e-12
    assert torch.allclose(ours.out.logits, theirs.out.logits, rtol=1e-12)
    assert theirs.out.logits.abs().sum() > 0
    assert method.plan()["widths"].count(2) >= 1  # the sum of spikes


def counted(function: Callable[..., Any], into: Counter[str]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        into[function.__name__] += 1
        return function(*args, **kwargs)

    return call
