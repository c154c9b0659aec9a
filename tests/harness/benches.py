"""Small real cells for tests of the engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness import registry
from harness.build import Bench, data_source, synthetic_batch
from harness.contracts import Unsupported
from harness.spec import CellSpec, LossSpec, Recipe

QUICK: dict[str, dict[str, Any]] = {"compile-budget": {"backend": "aot_eager_decomp_partition"}}
"""Options for methods that take minutes at their defaults; what changes is tested with the method."""


def make_spec(method: str = "bptt", *, options: dict[str, Any] | None = None, **changes: Any) -> CellSpec:
    """A cell on a small convnet and synthetic frames; ``net`` and ``data`` change their options."""
    net = {"channels": [8, 8], "norm": "per_step"} | changes.pop("net", {})
    sample = changes.pop("sample", [3, 8, 8])
    model = changes.pop("model", registry.complete("models", "convnet", net, where="test"))
    fields: dict[str, Any] = {
        "method": registry.complete("methods", method, options or QUICK.get(method, {}), where="test"),
        "baseline": "bptt",
        "model": model,
        "data": registry.complete("datasets", "shape", {"sample": sample, "classes": 5}, where="test"),
        "T": 4,
        "batch": 6,
        "loss": LossSpec(kind="per_step"),
        "recipe": Recipe(lr=0.05),
        "profile": "test",
        "phases": ("memory",),
    }
    return CellSpec(**(fields | changes))


def make_bench(spec: CellSpec, dtype: torch.dtype = torch.float32) -> Bench:
    """The cell's bench on synthetic input."""
    info = data_source(spec).info()
    x, y = synthetic_batch(info, spec)
    return Bench(spec, info, ((2 * x).to(dtype), y), convert=lambda model: model.to(dtype))


def supported(spec: CellSpec) -> Bench:
    """The bench, or a skip with the method's own reason."""
    bench = make_bench(spec)
    try:
        bench.trainer()
    except Unsupported as reason:
        pytest.skip(f"unsupported: {reason}")
    return bench


def counted(spec: CellSpec) -> Bench:
    """The bench of a method that the ledger can count, or a skip with the method's own reason."""
    reason = registry.plugin("methods", spec.method.name).ledger
    if reason is not None:
        pytest.skip(f"the ledger cannot count it: {reason}")
    return supported(spec)


def predicted(spec: CellSpec) -> CellSpec:
    """The same cell, predicted."""
    return spec.model_copy(update={"predicted": True, "phases": ("memory",)})
