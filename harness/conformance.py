"""The conformance kit: what any method, built-in or third-party, has to keep of its promises.

``snnbench check METHOD`` runs it. The nets are small, the shapes synthetic; exactness is judged in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness import fidelity, registry
from harness.build import (
    Bench,
    build_method,
    build_model,
    copy_weights,
    data_source,
    make_loss,
    synthetic_batch,
)
from harness.contracts import Unsupported, reset_states
from harness.ledger import Ledger, LedgerReport
from harness.memory import track
from harness.spec import CellSpec, LossSpec, Recipe, Ref

STEPS = (2, 4, 8, 16, 32)
"""Time steps over which saved bytes are followed."""
SLACK = 1.25
"""A method that plans cuts differently at every T, so "linear" is meant within a quarter (seen: 1.16)."""
SAMPLE, CLASSES, BATCH = [3, 8, 8], 5, 6

Nets = dict[str, dict[str, Any]]
NETS: Nets = {
    "batch norm over T x N": {"norm": "over_time", "channels": [6, 8]},
    "batch norm per step": {"norm": "per_step", "channels": [6, 8]},
    "no norm, average pooling": {"norm": "none", "channels": [6, 8], "pooling": "avg"},
    "dropout": {"norm": "per_step", "channels": [6, 8], "dropout": 0.4},
    "weight standardisation": {"norm": "weight_standardised", "channels": [6, 8]},
    "reversible blocks": {"name": "rev-resnet", "widths": [4, 6], "blocks": [2, 1], "stem": "image"},
}
"""What a method is tried on: options of ``convnet``, or of the model called ``name``."""


@dataclass(frozen=True)
class Check:
    """One property on one net.

    Args:
        name: what was checked, and on which net.
        passed: None where the check does not apply; ``skipped_reason`` says why.
        detail: the figures.
    """

    name: str
    passed: bool | None
    detail: str = ""
    skipped_reason: str | None = None


def check(name: str, options: dict[str, Any] | None = None, nets: Nets = NETS) -> list[Check]:
    """Hold a registered method to its promises.

    Args:
        name: the method.
        options: its options; defaults otherwise.
        nets: what to try it on, by the name that the results carry; as :data:`NETS`.

    Raises:
        UsageError: no such method.
    """
    ref = registry.complete("methods", name, options or {}, where="check")
    results: list[Check] = []
    for net, net_options in nets.items():
        spec = _spec(ref, net_options)
        try:
            _bench(spec).trainer()
        except Unsupported as reason:
            results.append(Check(f"supported: {net}", None, skipped_reason=str(reason)))
            continue
        unseen = registry.plugin("methods", name).ledger
        for run in CHECKS:
            if run in COUNTING and unseen is not None:
                results.append(Check(f"{_title(run)} ({net})", None, skipped_reason=unseen))
            else:
                results += _guarded(run, net, spec)
    if all(result.passed is None for result in results):
        results.append(Check("supports at least one of the kit's nets", False, "every net was refused"))
    return results


def _guarded(run: Callable[[CellSpec], Iterator[Check]], net: str, spec: CellSpec) -> list[Check]:
    try:
        return [dataclasses.replace(result, name=f"{result.name} ({net})") for result in run(spec)]
    except Exception as error:  # whatever a plugin does wrong is a finding of the kit
        return [Check(f"{_title(run)} ({net})", False, f"{type(error).__name__}: {error}")]


def _title(run: Callable[[CellSpec], Iterator[Check]]) -> str:
    return (run.__doc__ or run.__name__).splitlines()[0].rstrip(".")


def gradient(spec: CellSpec) -> Iterator[Check]:
    """Gradient against BPTT in float64: an exact method's is equal."""
    bench = _bench(spec, torch.float64)
    found = fidelity.measure(bench, "initial")
    detail = f"relative L2 {found.relative_l2:.2e}, cosine {found.cosine}, flipped spikes {found.flipped_spikes}"
    if build_method(spec).gradient == "exact":
        yield Check("exact gradient", found.relative_l2 <= fidelity.FLOOR[torch.float64], detail)
    else:
        worst = max(found.layers, key=lambda layer: layer.relative_l2 or 0.0)
        yield Check("biased gradient is finite", found.relative_l2 < float("inf"), f"{detail}; worst {worst.name}")
    if found.flipped_spikes is None:
        yield Check("forward spikes equal BPTT's", None, skipped_reason=found.reasons["flipped_spikes"])
    else:
        yield Check("forward spikes equal BPTT's", found.flipped_spikes == 0.0, detail)
    yield Check("loss equals BPTT's", abs(found.loss_difference) < 1e-10, f"difference {found.loss_difference:.2e}")


def float32(spec: CellSpec) -> Iterator[Check]:
    """Gradient against BPTT in float32."""
    if build_method(spec).gradient == "exact":
        found = fidelity.measure(_bench(spec), "initial")
        detail = f"relative L2 {found.relative_l2:.2e}, tolerance {found.tolerance:.2e}"
        yield Check("exact gradient, float32", found.exact, detail)


def time_mean(spec: CellSpec) -> Iterator[Check]:
    """Gradient under a time_mean loss, for methods that support one."""
    other = spec.model_copy(update={"loss": LossSpec(kind="time_mean")})
    try:
        found = fidelity.measure(_bench(other, torch.float64), "initial")
    except Unsupported as reason:
        yield Check("time_mean loss", None, skipped_reason=str(reason))
        return
    detail = f"relative L2 {found.relative_l2:.2e}"
    if build_method(spec).gradient == "exact":
        yield Check("exact gradient, time_mean loss", found.relative_l2 <= fidelity.FLOOR[torch.float64], detail)
    else:
        yield Check("biased gradient, time_mean loss, is finite", found.relative_l2 < float("inf"), detail)


def statistics(spec: CellSpec) -> Iterator[Check]:
    """Normalisation statistics after one step equal BPTT's."""
    bench = _bench(spec, torch.float64)
    ours, plain = _after_step(bench)
    reference = dict(plain.named_buffers())
    wrong = [n for n, b in ours.named_buffers() if n in reference and not torch.allclose(b, reference[n], rtol=1e-9)]
    yield Check("running statistics equal BPTT's", not wrong, f"differ: {', '.join(wrong)}" if wrong else "")


def repeatable(spec: CellSpec) -> Iterator[Check]:
    """No state leaks from one step into the next."""
    bench = _bench(spec, torch.float64)
    method = build_method(spec)
    model = bench.prepared(method).train()
    loss = make_loss(spec.loss)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    first = fidelity.method_gradient(method, model, bench.batch, loss).by_name
    other = bench.batch[0].roll(1, dims=1).flip(0), bench.batch[1]
    fidelity.method_gradient(method, model, other, loss)
    model.load_state_dict(state)
    again = fidelity.method_gradient(method, model, bench.batch, loss).by_name
    error = fidelity.relative_l2(again, first) if again.keys() == first.keys() else float("inf")
    yield Check("same batch, same gradient after another batch", error == 0.0, f"relative L2 {error:.2e}")


def keys(spec: CellSpec) -> Iterator[Check]:
    """state_dict keys and evaluation of the finished model are those of the model as built."""
    bench = _bench(spec, torch.float64)
    built = bench.convert(build_model(bench.spec, bench.info))
    method = build_method(spec)
    finished = method.finish(bench.prepared(method))
    if method.model != "same":
        yield Check("state_dict keys unchanged", None, skipped_reason=f"the method changes the model: {method.model}")
        return
    same = list(finished.state_dict()) == list(built.state_dict())
    yield Check("state_dict keys unchanged", same, f"{sorted(set(finished.state_dict()) ^ set(built.state_dict()))}")
    copy_weights(finished, built)
    a, b = _evaluate(finished, bench.batch[0]), _evaluate(built, bench.batch[0])
    yield Check("evaluation unchanged", torch.equal(a, b), f"largest difference {float((a - b).abs().max()):.2e}")


def awkward_input(spec: CellSpec) -> Iterator[Check]:
    """Non-contiguous input gives the same gradient; the input gets a gradient only when it asks for one."""
    bench = _bench(spec, torch.float64)
    x, y = bench.batch
    method = build_method(spec)
    model, loss = bench.prepared(method).train(), make_loss(spec.loss)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    straight = fidelity.method_gradient(method, model, (x, y), loss).by_name
    model.load_state_dict(state)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    crooked = fidelity.method_gradient(method, model, (strided, y), loss).by_name
    error = fidelity.relative_l2(crooked, straight)
    yield Check("non-contiguous input", error <= fidelity.FLOOR[torch.float64], f"relative L2 {error:.2e}")
    yield Check("no gradient for the input", x.grad is None and strided.grad is None)


def mixed_precision(spec: CellSpec) -> Iterator[Check]:
    """A step under bf16 autocast runs and gives finite gradients."""
    amp = spec.model_copy(update={"precision": "amp-bf16"})
    trainer = _bench(amp).trainer()
    x, y = _bench(amp).batch
    out = trainer.step(x, y)
    finite = all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())
    yield Check("amp-bf16 step", finite and bool(torch.isfinite(out.loss)), f"loss {float(out.loss):.4f}")


def memory(spec: CellSpec) -> Iterator[Check]:
    """Live bytes do not grow from step to step; the ledger repeats itself to the byte."""
    bench = _bench(spec)
    trainer = bench.trainer()
    peaks = [track(trainer, bench).peak_bytes for _ in range(3)]
    yield Check("same peak in three steps", len(set(peaks)) == 1, f"{peaks}")
    left = _left_over(bench)
    yield Check(
        "nothing is left over from a step", len(set(left)) == 1, f"live bytes after each of three steps: {left}"
    )


def saved(spec: CellSpec) -> Iterator[Check]:
    """Saved bytes over T = 2..32: flat where the method says so, never faster than T.

    A method that plans may save more, out of proportion, at a larger T in order to lower its peak: then the peak counts.
    """
    reports = {steps: _tracked(spec.model_copy(update={"T": steps})) for steps in STEPS}
    found = {steps: _saved(report) for steps, report in reports.items()}
    flat = build_method(spec).flat_in_time
    limit = SLACK * STEPS[-1] / STEPS[0]
    peak = {steps: report.peak_bytes - report.static_bytes for steps, report in reports.items()}
    growth, peaks = (bytes_[STEPS[-1]] / bytes_[STEPS[0]] for bytes_ in (found, peak))
    kept = len(set(found.values())) == 1 if flat else growth <= limit or peaks <= limit
    promise = "flat" if flat else "at most linear"
    grown = f"x{growth:.2f} from T={STEPS[0]} to {STEPS[-1]}, the peak x{peaks:.2f}"
    yield Check(f"saved bytes over T: {promise}", kept, f"{found}: {grown}")


CHECKS = (gradient, float32, time_mean, statistics, repeatable, keys, awkward_input, mixed_precision, memory, saved)
COUNTING = (memory, saved)
"""Checks that read the ledger."""


def _left_over(bench: Bench) -> list[int]:
    trainer = bench.trainer()
    trainer.step(*bench.batch)
    ledger, live = Ledger(trainer.model, bench.spec.device), []
    with ledger:
        for _ in range(3):
            trainer.step(*bench.batch)
            reset_states(trainer.model)
            live.append(ledger.live)
    return live


def _tracked(spec: CellSpec) -> LedgerReport:
    bench = _bench(spec)
    return track(bench.trainer(), bench)


def _saved(report: LedgerReport) -> int:
    if report.saved_bytes is None:
        raise ValueError("the step ran no backward")
    return report.saved_bytes


def _spec(method: Ref, net: dict[str, Any]) -> CellSpec:
    options = {key: value for key, value in net.items() if key != "name"}
    name = net.get("name", "convnet")
    return CellSpec(
        method=method,
        baseline=registry.plugin("methods", method.name).baseline,
        model=registry.complete("models", name, options, where="conformance kit"),
        data=registry.complete("datasets", "shape", {"sample": SAMPLE, "classes": CLASSES}, where="conformance kit"),
        T=4,
        batch=BATCH,
        loss=LossSpec(kind="per_step"),
        recipe=Recipe(lr=0.01),
        profile="conformance",
        phases=("fidelity",),
    )


def _bench(spec: CellSpec, dtype: torch.dtype = torch.float32) -> Bench:
    info = data_source(spec).info()
    x, y = synthetic_batch(info, spec)
    # Twice the unit interval: deeper layers of an untrained net would hardly fire on less.
    return Bench(spec, info, ((2 * x).to(dtype), y), convert=lambda model: model.to(dtype))


def _after_step(bench: Bench) -> tuple[nn.Module, nn.Module]:
    method = build_method(bench.spec)
    model, plain, loss = bench.prepared(method).train(), bench.plain().train(), make_loss(bench.spec.loss)
    copy_weights(model, plain)
    fidelity.method_gradient(method, model, bench.batch, loss)
    fidelity.bptt_gradient(plain, bench.batch, loss)
    return model, plain


def _evaluate(model: nn.Module, x: Tensor) -> Tensor:
    model.eval()
    reset_states(model)
    with torch.no_grad():
        return model(x)
