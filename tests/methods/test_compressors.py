"""Compressors: lossless on what they hold, never silent about what they do not."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from spikingjelly.activation_based import layer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.contracts import StagedModel
from harness.predict import convert
from methods.bptt import BPTT
from methods.checkpoint_compress import CheckpointCompress, CheckpointCompressOptions
from methods.compressors import FIXED, NAMES, Keeper, width_under
from methods.packing import RAW
from tests.methods.nets import Scale, batch, build, conv, difference, lif, over_time, prepared, run
from tests.methods.test_checkpoint_compress import Gain
from tests.methods.test_levels import sew, track

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def method(compressor: str, level: str = "O1") -> CheckpointCompress:
    return CheckpointCompress(CheckpointCompressOptions(level=level, compressor=compressor))


def flat() -> StagedModel:
    """All stages binary by rule."""
    return build(middle=lambda c: conv(c, c, lif(), over_time))


def gained(factor: float = 1.0) -> StagedModel:
    """Spikes times a factor, which no rule knows, into the third stage."""
    model = build(middle=lambda c: Gain())
    model.stages[1].factor = factor
    return model


def spikes(dtype: torch.dtype, top: int = 1, shape: tuple[int, ...] = (3, 5, 7)) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, top + 1, shape, generator=draw).to(dtype)


def keeper(name: str, width: int | None = None) -> Keeper:
    return Keeper(name, [FIXED[name][1] if name in FIXED and width is None else width], CPU)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FIXED)
def test_what_a_compressor_holds_comes_back(name, dtype):
    x = spikes(dtype, FIXED[name][0] if dtype != torch.bfloat16 else 1)
    for given in (x, x.transpose(0, 2), x[:, ::2], torch.zeros_like(x), torch.ones_like(x), x[:0], x[0, 0, 0]):
        keep = keeper(name)
        back = keep(0, given).restore()
        assert torch.equal(back, given)
        assert (back.dtype, back.shape) == (given.dtype, given.shape)
        assert not int(keep.violations)


@pytest.mark.parametrize("bad", [0.5, -1.0, 2.0, math.nan, math.inf, -math.inf, 256.0, 1e30, 1e-30])
@pytest.mark.parametrize("name", FIXED)
def test_what_it_does_not_hold_is_counted(name, bad):
    x = spikes(torch.float32)
    x[1, 2, 3] = x[0, 0, 0] = bad
    keep = keeper(name)
    keep(0, x)
    assert int(keep.violations) == (0 if name == "uint8" and bad == 2.0 else 2)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_belongs_to_nobody_else_once_owned(name):
    x = spikes(torch.float32)
    back = keeper(name, RAW if name == "raw" else None)(0, x).owned().restore()
    back += 1
    assert torch.equal(x, spikes(torch.float32))


def test_widths_follow_from_bounds():
    bounds = (None, 1, 3, 255, 256, math.inf)
    expected = {
        "adaptive": [None, 1, 2, 8, RAW, RAW],
        "bit": [1, 1, RAW, RAW, RAW, RAW],
        "bool": [8, 8, RAW, RAW, RAW, RAW],
        "uint8": [8, 8, 8, 8, RAW, RAW],
        "sparse": [32, 32, RAW, RAW, RAW, RAW],
        "raw": [RAW] * 6,
    }
    assert {name: [width_under(name, bound) for bound in bounds] for name in NAMES} == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", ["O1", "O4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_that_of_bptt(name, level, dtype):
    x, y = batch(dtype=dtype)
    results = []
    for kind in (BPTT, partial(method, name, level)):
        model, instance = flat().to(dtype), kind()
        results.append(run(instance, prepared(instance, model, x), x, y))
    assert difference(results[1].gradients, results[0].gradients) <= (1e-10 if dtype == torch.float64 else 1e-5)
    assert torch.equal(results[1].out.logits, results[0].out.logits)


@pytest.mark.parametrize("name", ["bit", "bool", "sparse"])
@pytest.mark.parametrize("middle", [sew, lambda c: layer.AvgPool2d(3, 1, 1, step_mode="m"), lambda c: nn.Dropout(0.3)])
def test_what_rules_know_not_to_fit_is_kept_raw(name, middle):
    """Sums of a SEW block, averages, rescaled dropout."""
    x, y = batch(dtype=torch.float64)
    results = []
    for kind in (BPTT, partial(method, name)):
        model, instance = build(middle=middle).double(), kind()
        results.append(run(instance, prepared(instance, model, x), x, y))
    assert difference(results[1].gradients, results[0].gradients) <= 1e-10
    assert instance.plan()["widths"][:3] == [RAW, FIXED[name][1], RAW]


@pytest.mark.parametrize(
    ("name", "holds", "factor"),
    [
        *[("bit", "0 and 1", 2.0), ("bool", "0 and 1", 0.5), ("sparse", "0 and 1", 3.0)],
        *[("uint8", "integers from 0 to 255", 256.0), ("uint8", "integers", -1.0)],
    ],
)
def test_a_compressor_refuses_what_it_cannot_hold_and_nothing_is_updated(name, holds, factor):
    x, y = batch()
    model, instance = gained(), method(name)
    prepared(instance, model, x)
    run(instance, model, x, y)  # binary so far
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.stages[1].factor = factor
    with pytest.raises(
        ValueError, match=rf"stage 2, child 0 \(MaxPool2d\): compressor '{name}' holds {holds}"
    ) as error:
        run(instance, model, x, y)
    assert "use 'adaptive' or 'raw'; nothing was updated" in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    model.stages[1].factor = 1.0
    run(instance, model, x, y)  # and goes on where it was


def test_raw_needs_no_check():
    x, y = batch(dtype=torch.float64)
    results = []
    for kind in (BPTT, partial(method, "raw")):
        model, instance = gained(0.37).double(), kind()
        results.append(run(instance, prepared(instance, model, x), x, y))
    assert difference(results[1].gradients, results[0].gradients) <= 1e-10


def test_saved_bytes_order():
    x, y = batch(8)
    saved = {name: track(method(name), flat(), x, y).saved_bytes for name in NAMES}
    assert saved["adaptive"] == saved["bit"]
    assert saved["bool"] == saved["uint8"]
    assert saved["bit"] < saved["bool"] < saved["raw"]
    assert saved["bit"] < saved["sparse"] < saved["raw"]  # spikes are neither absent nor everywhere


@pytest.mark.parametrize("level", ["O1", "O4"])
@pytest.mark.parametrize("name", NAMES)
def test_prediction_with_a_replayed_plan_costs_the_same_bytes(name, level):
    """Also for ``sparse``, whose size depends on the values."""
    x, y = batch()
    real_method = method(name, level)
    real = track(real_method, flat(), x, y)
    model, replayed = flat(), method(name, level)
    replayed.replay(json.loads(json.dumps(real_method.plan())))
    with FakeTensorMode() as mode:
        fake = track(replayed, convert(model, mode), mode.from_tensor(x), mode.from_tensor(y))
    assert (fake.peak_bytes, fake.saved_bytes, fake.split) == (real.peak_bytes, real.saved_bytes, real.split)


def test_sparse_without_a_replay_is_predicted_from_above():
    x, y = batch()
    real = track(method("sparse"), flat(), x, y)
    model = flat()
    with FakeTensorMode() as mode:
        fake = track(method("sparse"), convert(model, mode), mode.from_tensor(x), mode.from_tensor(y))
    assert fake.saved_bytes > real.saved_bytes


def test_unknown_compressors_and_levels_are_named():
    for wrong in ({"compressor": "zip"}, {"level": "O5"}, {"levle": "O1"}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            CheckpointCompressOptions(**wrong)


@pytest.mark.parametrize("factor", [0.5, 7.0])
def test_adaptive_never_refuses(factor):
    x, y = batch()
    model: Any = build(middle=lambda c: Scale(factor))
    instance = method("adaptive")
    assert run(instance, prepared(instance, model, x), x, y).updates == 1
