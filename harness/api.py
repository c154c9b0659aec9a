"""The engine as functions, for notebooks, scripts and the regression benchmarks: describe a cell, measure one thing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from harness import fidelity, memory, predict, registry, timing, training
from harness.build import open_bench
from harness.record import Fidelity, Memory, Timing, Training
from harness.spec import CellSpec, LossSpec, Ref
from harness.store import Store
from harness.store.frame import frame

Named = str | Mapping[str, Any]
"""A plugin by name, or ``{"name": ..., option: value}`` as in a suite file."""


def cell(
    method: Named = "bptt",
    model: Named = "convnet",
    data: Named = "digits",
    *,
    T: int = 4,
    batch: int = 32,
    loss: str = "per_step",
    **fields: Any,
) -> CellSpec:
    """Describe one cell.

    Args:
        method: how gradients are computed.
        model: the network.
        data: the data set.
        T: time steps.
        batch: samples per step.
        loss: ``per_step`` or ``time_mean``.
        fields: any other field of :class:`harness.spec.CellSpec`.

    Raises:
        UsageError: an unknown name or option.

    >>> cell("sltt", {"name": "convnet", "norm": "per_step"}, T=8).T
    8
    """
    ref = _ref("methods", method)
    defaults: dict[str, Any] = {"profile": "python", "phases": ("fidelity", "memory", "time")}
    defaults["baseline"] = registry.plugin("methods", ref.name).baseline
    return CellSpec(
        method=ref,
        model=_ref("models", model),
        data=_ref("datasets", data),
        T=T,
        batch=batch,
        loss=LossSpec.model_validate({"kind": loss}),
        **(defaults | fields),
    )


def measure_memory(spec: CellSpec) -> Memory:
    """One settled training step under the ledger; under fake tensors where ``spec.predicted``."""
    return predict.predict(spec)[0] if spec.predicted else memory.measure(open_bench(spec)[0])[0]


def measure_fidelity(spec: CellSpec) -> Fidelity:
    """The method's gradient against BPTT's, at the initial weights."""
    return fidelity.measure(open_bench(spec)[0], "initial")


def measure_time(spec: CellSpec) -> Timing:
    """Step time, and its ratio to the baseline's, paired."""
    return timing.measure(open_bench(spec)[0])


def train(spec: CellSpec) -> Training:
    """Train for the recipe's epochs.

    Raises:
        ValueError: the data is absent.
    """
    return training.measure(open_bench(spec)[0])[0]


def load(*stores: Path | str, all_runs: bool = False) -> pd.DataFrame:
    """Records of result stores as one tidy table, the latest of each cell."""
    return frame([item for store in stores for item in Store(store).records()], all_runs=all_runs)


def _ref(kind: str, named: Named) -> Ref:
    options = {} if isinstance(named, str) else {k: v for k, v in named.items() if k != "name"}
    name = named if isinstance(named, str) else str(named.get("name", ""))
    return registry.complete(kind, name, options, where=f"{registry.SINGULAR[kind]} of cell()")
