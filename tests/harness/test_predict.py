"""Predicted cells: fake tensors give the real run's bytes."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from harness import registry
from harness.contracts import StagedModel
from harness.memory import measure
from harness.predict import convert, predict
from harness.record import Split
from harness.spec import CellSpec, LossSpec, Recipe
from tests.harness.benches import counted, make_spec, predicted, supported

VARIANTS: dict[str, dict[str, Any]] = {
    "batch norm per step": {},
    "dropout, average pooling": {"net": {"dropout": 0.25, "pooling": "avg"}},
    "amp-bf16": {"precision": "amp-bf16"},
    "amp-fp16, clipped": {"precision": "amp-fp16", "recipe": Recipe(optimizer="sgd", lr=0.001, clip_grad_norm=1.0)},
    "adamw, clipped": {"recipe": Recipe(optimizer="adamw", lr=0.001, clip_grad_norm=1.0)},
    "soft reset, plif": {"net": {"v_reset": "soft", "neuron": "plif"}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_prediction_equals_the_measured_bytes(method: str, variant: str) -> None:
    spec = make_spec(method, **VARIANTS[variant])
    bench = counted(spec)
    real, whole, trainer = measure(bench)
    fake, fake_whole, _ = predict(predicted(spec), trainer.method.plan())
    assert whole is not None
    assert fake_whole is not None
    assert fake.peak_live_bytes == real.peak_live_bytes
    assert fake.saved_bytes == real.saved_bytes
    if trainer.method.abridged:
        # Fewer chunks make fewer events, and which of a chunk's tensors outlive the forward depends on the chunk.
        assert merged(fake.split) == merged(real.split)
        return
    assert fake.split == real.split
    if spec.precision == "fp32":  # fake batch norm casts its statistics one operator later under autocast
        assert fake_whole.timeline == whole.timeline


def merged(split: Split) -> dict[str, int]:
    """The split with activations and temporaries in one, as ``peak_activation_bytes`` has them."""
    found = split.model_dump()
    found["activations"] += found.pop("temporaries")
    return found


@pytest.mark.parametrize("norm", ["over_time", "per_step", "none"])
def test_normalisation_modes(norm: str) -> None:
    spec = make_spec("bptt", net={"norm": norm})
    assert predict(predicted(spec))[0].peak_live_bytes == measure(supported(spec))[0].peak_live_bytes


@pytest.mark.parametrize("name", ["bptt", "checkpoint-compress", "streamed", "sltt"])
def test_a_gradient_scaler_looks_at_no_value(name: str) -> None:
    spec = make_spec(name, precision="amp-fp16")
    block, _, trainer = measure(supported(spec))
    assert trainer.loss.scaler is not None
    assert predict(predicted(spec), trainer.method.plan())[0].peak_live_bytes == block.peak_live_bytes


def test_a_prediction_says_what_it_did_not_measure() -> None:
    block, _, _ = predict(predicted(make_spec()))
    for name in ("host_peak_bytes", "cuda_allocated_bytes", "nvml_process_bytes"):
        assert getattr(block, name) is None
        assert "predicted" in block.reasons[name]


def paper(model: str, sample: list[int], classes: int, steps: int, **options: Any) -> CellSpec:
    return CellSpec(
        method=registry.complete("methods", "bptt", {}, "test"),
        baseline="bptt",
        model=registry.complete("models", model, options, "test"),
        data=registry.complete("datasets", "shape", {"sample": sample, "classes": classes}, "test"),
        T=steps,
        batch=32,
        recipe=Recipe(lr=0.1, momentum=0.9),
        loss=LossSpec(kind="per_step"),
        profile="test",
        phases=("memory",),
        predicted=True,
    )


@pytest.mark.parametrize(
    ("model", "sample", "classes", "steps", "options", "mib"),
    [
        ("sew-resnet", [3, 224, 224], 1000, 4, {"depth": 34}, 8258),
        ("vgg", [2, 48, 48], 10, 10, {}, 5008),
    ],
)
def test_paper_scale_peaks(model: str, sample: list[int], classes: int, steps: int, options: Any, mib: int) -> None:
    """The figures were found with a prototype of the ledger, before this code: batch 32, fp32, SGD with momentum."""
    block, _, _ = predict(paper(model, sample, classes, steps, **options))
    assert block.peak_live_bytes is not None
    assert block.peak_live_bytes / 2**20 == pytest.approx(mib, abs=1)


def test_conversion_keeps_sharing_and_gradients() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight
            self.a.bias.requires_grad_(False)

    model = StagedModel([Tied()], nn.BatchNorm1d(3), "none")
    convert(model, FakeTensorMode())
    tied = model.stages[0]
    assert isinstance(tied, Tied)
    assert tied.a.weight is tied.b.weight
    assert not tied.a.bias.requires_grad
    assert tied.b.bias.requires_grad
    assert all(isinstance(t, FakeTensor) for t in [*model.parameters(), *model.buffers()])


def test_a_prediction_allocates_nothing() -> None:
    """A prediction of a huge batch must not allocate it."""
    spec = predicted(make_spec(sample=[3, 512, 512], batch=4096, T=8))
    block, _, _ = predict(spec)
    assert block.peak_live_bytes is not None
    assert block.peak_live_bytes > 2**38
