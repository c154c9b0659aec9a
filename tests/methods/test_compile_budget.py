"""torch.compile under a memory budget: BPTT's gradient, less kept for a smaller budget, and an error instead of eager.

Compiling takes seconds without a compiler and half a minute with one, so most of these tests are slow.
"""

from __future__ import annotations

import copy
import gc
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from spikingjelly.activation_based import layer
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from harness import conformance, memory
from harness.contracts import StagedModel, reset_states
from harness.ledger import Ledger
from harness.predict import predict
from methods.bptt import BPTT
from methods.compile_budget import CompileBudget, CompileBudgetOptions, missing_compiler
from tests.harness.benches import make_bench, make_spec, predicted
from tests.methods.nets import batch, build, conv, difference, integrate, lif, loss, over_time, per_step, plif, run
from tests.methods.test_exactness import TOLERANCE

UNCOMPILED = CompileBudgetOptions(backend="aot_eager_decomp_partition")
INDUCTOR = CompileBudgetOptions()
COMPILER = pytest.mark.skipif(missing_compiler("cpu") is not None, reason="no C++ compiler")
MINUTES = pytest.mark.timeout(900)
"""A compilation takes half a minute alone on a core, and more where others compile beside it."""
RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-5}

NETS: dict[str, Any] = {
    "lif": lambda: build(lif()),
    "dropout": lambda: build(middle=lambda c: conv(c, c, lif(), over_time, layer.Dropout(0.4, step_mode="m"))),
    "per-step-norm": lambda: build(lif(), per_step),
    "plif-soft": lambda: build(plif(v_reset=None, detach_reset=True)),
    "if-soft": lambda: build(integrate(v_reset=None)),
}


def tiny() -> StagedModel:
    """One neuron layer and a mask, which compile in a second."""
    torch.manual_seed(0)
    stage = conv(2, 2, lif(), over_time, layer.Dropout(0.4, step_mode="m"))
    head = torch.nn.Sequential(layer.Flatten(step_mode="m"), layer.Linear(128, 3, step_mode="m"))
    return StagedModel([stage], head, "over_time")


def prepared(method: CompileBudget, model: StagedModel, x: Tensor) -> StagedModel:
    assert method.supports(model, loss()) is None
    return method.prepare(model.train(), x, loss())


def compare(net: Any, options: CompileBudgetOptions, dtype: torch.dtype, T: int = 3) -> CompileBudget:
    """Two steps on different batches; the second runs what the first compiled."""
    x, y = batch(T, dtype=dtype)
    model, method = net().to(dtype), CompileBudget(options)
    reference = copy.deepcopy(model).train()
    prepared(method, model, x)
    for values in (x, x.flip(0)):
        got, expected = run(method, model, values, y), run(BPTT(), reference, values, y)
        assert got.updates == 1
        assert difference(got.gradients, expected.gradients) <= TOLERANCE[dtype]
        assert torch.allclose(got.out.logits, expected.out.logits, rtol=RELATIVE[dtype], atol=RELATIVE[dtype])
        assert got.buffers.keys() == expected.buffers.keys()
        assert all(torch.allclose(got.buffers[k], v, rtol=RELATIVE[dtype]) for k, v in expected.buffers.items())
        assert all(g.dtype == dtype for g in got.gradients.values())
    assert method.plan()["graphs"] >= 1
    return method


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradient_statistics_and_masks_are_those_of_bptt(dtype):
    """In float64 the mask is the largest thing to keep: regression for a backward that drew another one."""
    assert compare(tiny, UNCOMPILED, dtype, T=2).plan()["breaks"] == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("net", NETS)
def test_every_net_is_exact(net, dtype):
    compare(NETS[net], UNCOMPILED, dtype)


@pytest.mark.slow
@MINUTES
@COMPILER
@pytest.mark.parametrize(("net", "dtype"), [("lif", torch.float32), ("dropout", torch.float64)])
def test_compiled_kernels_are_exact(net, dtype):
    compare(NETS[net], INDUCTOR, dtype, T=2)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1.0, 0.2, 0.01])
def test_every_budget_keeps_what_was_drawn(budget):
    compare(NETS["dropout"], UNCOMPILED.model_copy(update={"budget": budget}), torch.float64)


def saved_bytes(spec: Any) -> int:
    """What the allocator gave in a settled step before the backward began, and had not got back."""
    bench = make_bench(spec)
    trainer = bench.trainer()
    trainer.step(*bench.batch)
    gc.collect()
    reset_states(trainer.model)
    backward = trainer.loss.backward

    def marked(value: Tensor) -> None:
        with record_function("the backward"):
            backward(value)

    trainer.loss.backward = marked  # type: ignore[method-assign]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        trainer.step(*bench.batch)
    events = prof.profiler.kineto_results.events()
    begin = min(event.start_ns() for event in events if event.name() == "the backward")
    return sum(event.nbytes() for event in events if event.name() == "[memory]" and event.start_ns() < begin)


def spec_of(method: str, T: int = 3, **options: Any) -> Any:
    net = {"channels": [16, 16], "norm": "per_step"}
    return make_spec(method, options=options, net=net, sample=[3, 16, 16], batch=8, T=T)


@pytest.mark.slow
@MINUTES
@pytest.mark.parametrize("backend", ["aot_eager_decomp_partition", pytest.param("inductor", marks=COMPILER)])
def test_a_smaller_budget_saves_less(backend):
    """Bytes saved for the backward; the peak need not fall, since what is computed again is in it."""
    steps, budgets = (2, (1.0, 0.1)) if backend == "inductor" else (3, (1.0, 0.5, 0.1))
    found = [saved_bytes(spec_of("compile-budget", steps, backend=backend, budget=b)) for b in budgets]
    assert all(less < more for more, less in pairwise([saved_bytes(spec_of("bptt", steps)), *found, 0])), found


@pytest.mark.slow
def test_autocast():
    x, y = batch(2)
    results: list[Any] = []
    for method in (BPTT(), CompileBudget(UNCOMPILED)):
        model = tiny().train()
        method.prepare(model, x, loss())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results.append(run(method, model, x, y))
    assert torch.allclose(results[0].out.logits, results[1].out.logits, rtol=1e-2, atol=1e-2)
    assert difference(results[1].gradients, results[0].gradients) <= 2e-2


@pytest.mark.slow
@MINUTES
def test_conformance():
    options = {"backend": "aot_eager_decomp_partition"}
    nets = {name: conformance.NETS[name] for name in ("batch norm over T x N", "dropout")}
    results = conformance.check("compile-budget", options, nets)
    assert any(result.passed for result in results)
    assert not [result for result in results if result.passed is False]
    skipped = {result.name: result.skipped_reason for result in results if result.passed is None}
    assert set(skipped.values()) == {CompileBudget.ledger}
    assert len(skipped) == 2 * len(conformance.COUNTING)


def test_options():
    assert CompileBudgetOptions().model_dump() == {"budget": 0.5, "backend": "inductor"}
    assert CompileBudgetOptions(budget=1).budget == 1.0
    for wrong in ({"budget": 0.0}, {"budget": 1.1}, {"backend": "eager"}, {"level": 1}):
        with pytest.raises(ValidationError):
            CompileBudgetOptions(**wrong)


def test_without_a_compiler_it_says_so():
    with torch._inductor.config.patch({"cpp.cxx": ("a-compiler-that-is-not-there",)}):
        reason = CompileBudget(INDUCTOR).supports(tiny(), loss())
    assert reason is not None
    assert "C++ compiler" in reason
    assert CompileBudget(UNCOMPILED).supports(tiny(), loss()) is None


def test_without_triton_on_cuda_it_says_so(monkeypatch):
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    assert "Triton" in str(missing_compiler("cuda"))
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    assert missing_compiler("cuda") is None


def test_where_compiling_is_switched_off_it_says_so():
    with torch._dynamo.config.patch(disable=True):
        assert "TORCH_COMPILE_DISABLE" in str(CompileBudget(UNCOMPILED).supports(tiny(), loss()))


def test_memory_is_null_with_the_reason():
    spec = make_spec("compile-budget", net={"channels": [4]}, T=2)
    block, report, trainer = memory.measure(make_bench(spec))
    assert report is None
    for name in memory.COUNTED:
        assert getattr(block, name) is None
        assert block.reasons[name] == CompileBudget.ledger
    assert trainer.method.plan()["graphs"] >= 1
    block, report, _ = predict(predicted(spec))
    assert report is None
    assert (block.peak_live_bytes, block.reasons["peak_live_bytes"]) == (None, CompileBudget.ledger)


def test_under_a_dispatch_mode_it_refuses():
    x, y = batch(2)
    model, method = tiny(), CompileBudget(UNCOMPILED)
    prepared(method, model, x)
    with Ledger(model), pytest.raises(RuntimeError, match="a dispatch mode is active"):
        run(method, model, x, y)


def test_eager_code_under_its_name_is_an_error():
    """Torch runs the eager code when it is told not to compile, without a word."""
    x, y = batch(2)
    model, method = tiny(), CompileBudget(UNCOMPILED)
    prepared(method, model, x)
    with torch._dynamo.config.patch(disable=True), pytest.raises(RuntimeError, match="compiled nothing"):
        run(method, model, x, y)


def test_step_needs_prepare():
    with pytest.raises(RuntimeError, match="step before prepare"):
        run(CompileBudget(UNCOMPILED), tiny(), *batch(2))


def test_hooks_and_keys_and_settings_are_as_before():
    x, y = batch(2)
    model, method, seen = tiny(), CompileBudget(UNCOMPILED), []
    built = list(model.state_dict())
    prepared(method, model, x)
    for module in (model, model.stages[0], model.head):
        module.register_forward_hook(lambda *_: seen.append(1))
    before = torch._functorch.config.activation_memory_budget, torch._inductor.config.fallback_random
    run(method, model, x, y)
    assert not seen
    assert (torch._functorch.config.activation_memory_budget, torch._inductor.config.fallback_random) == before
    assert method.finish(model) is model
    assert list(model.state_dict()) == built
    reset_states(model)
    with torch.no_grad():
        model(x)
    assert len(seen) == 3
