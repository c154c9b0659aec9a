"""``streamed`` at its smallest on every registered model and every model of the quick suite: BPTT's gradient and spikes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from harness import fidelity, registry, suite
from harness.build import Batch, copy_weights, data_source, make_loss
from harness.contracts import Method
from harness.spec import CellSpec, Ref
from methods.bptt import BPTT
from methods.streamed import Streamed
from tests.harness.benches import make_bench, make_spec
from tests.suites.test_all_models import OURS, TINY

LONG = {"nf-resnet", "preact-resnet", "qkformer", "sew-resnet", "spiking-resnet", "spiking-vgg"}
"""Models whose plans take seconds, or that have 129 million weights whatever their depth."""


def quick_models() -> list[Any]:
    """The models of the quick suite, each once, with the shape of a sample; one of real size is only predicted there."""
    found: dict[str, tuple[Ref, tuple[int, ...], bool]] = {}
    for cell in sorted(suite.load("quick").expand("cpu"), key=lambda cell: cell.predicted):
        sample = data_source(cell).info().sample
        key = f"{json.dumps(cell.model.model_dump(), sort_keys=True)} {sample}"
        found.setdefault(key, (cell.model, sample, cell.predicted))
    return [
        pytest.param(model, sample, id=f"{model.name}-{index}", marks=[pytest.mark.slow] if predicted else [])
        for index, (model, sample, predicted) in enumerate(found.values())
    ]


def check(spec: CellSpec) -> None:
    """Planned once, for float32; float64 takes the same modes."""
    plan: dict[str, Any] | None = None
    for dtype in (torch.float32, torch.float64):
        bench, method = make_bench(spec, dtype), Streamed()
        if plan is not None:
            method.replay(plan)
        model, plain = bench.prepared(method), bench.plain()
        copy_weights(model, plain)
        found = fidelity.compare(method, model, plain, bench.batch, make_loss(spec.loss), "initial")
        plan = method.plan()
        assert found.flipped_spikes is not None, found.reasons
        if dtype == torch.float64:
            assert found.relative_l2 <= 1e-10
            assert found.flipped_spikes == 0
        elif found.flipped_spikes == 0:
            assert found.relative_l2 <= 1e-5
        else:  # a processor whose convolutions round a chunk otherwise than the whole batch
            assert found.relative_l2 <= found.tolerance


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in OURS])
def test_gradient_and_spikes_of_every_registered_model(name):
    options, sample, _ = TINY[name]
    model = registry.complete("models", name, options, "test")
    check(make_spec("streamed", model=model, sample=list(sample), T=3, batch=4))


@pytest.mark.parametrize(("model", "sample"), quick_models())
def test_gradient_and_spikes_of_every_model_of_the_quick_suite(model, sample):
    check(make_spec("streamed", model=model, sample=list(sample), T=4, batch=8))


def curve(method: Method, batches: list[Batch], dtype: torch.dtype) -> list[float]:
    """Losses of steps of gradient descent on digits."""
    bench = make_bench(make_spec(sample=[1, 8, 8]), dtype)
    loss = make_loss(bench.spec.loss)
    model = bench.plain().train()
    method.prepare(model, batches[0][0].to(dtype), loss)  # type: ignore[arg-type]
    losses = []
    for x, y in batches:
        found = fidelity.method_gradient(method, model, (x.to(dtype), y), loss)  # type: ignore[arg-type]
        losses.append(found.loss)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter -= 0.1 * found.by_name[name]
    return losses


def test_training_on_digits_is_that_of_bptt():
    """Rounding grows from step to step, but in double precision not to a size that matters."""
    data = registry.create("datasets", Ref(name="digits", options={})).load(4).train
    items = [data[index] for index in range(24 * 16)]
    batches = [
        (torch.stack([x for x, _ in part], 1), torch.tensor([int(y) % 5 for _, y in part]))
        for part in (items[a : a + 16] for a in range(0, len(items), 16))
    ]
    expected, found = (curve(kind(), batches, torch.float64) for kind in (BPTT, Streamed))
    assert found == pytest.approx(expected, rel=1e-9)
    assert sum(expected[-4:]) < 0.97 * sum(expected[:4])  # it learns
    single = [curve(kind(), batches[:1], torch.float32)[0] for kind in (BPTT, Streamed)]
    assert single[1] == pytest.approx(single[0], rel=1e-6)
