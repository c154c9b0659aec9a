"""The engine as functions, for notebooks, scripts and the regression benchmarks: describe a cell, measure one thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness import fidelity, memory, predict, registry, timing, training
from harness.build import open_bench
from harness.errors import UsageError
from harness.plan.live import Applied, LivePlan, plan
from harness.record import Fidelity, Memory, Timing, Training
from harness.spec import CellSpec, LossSpec, Ref
from harness.store import Store
from harness.store.frame import frame

if TYPE_CHECKING:
    from harness.plan.benching import Measured

__all__ = [
    "Applied", "LivePlan", "Named", "bench", "cell", "load", "measure_fidelity", "measure_memory", "measure_time",
    "plan", "train",
]  # fmt: skip

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
    return frame((item for store in stores for item in Store(store).stream()), all_runs=all_runs)


def bench(
    factory: str | Callable[[], Any],
    input: Sequence[int],
    *,
    methods: Sequence[str] = (),
    store: Path | str = "results/bench",
    **fields: Any,
) -> Measured:
    """Measure memory, paired time and gradient of every method on a model of your own, each in its own process.

    Args:
        factory: ``module:factory``, or a function of a module that other processes can import; gives the model.
        input: ``(T, N, C, H, W)``.
        methods: names, with options as ``name:option=value``; empty: all that are installed.
        store: folder of the records; ``snnbench report --store`` makes pages of it.
        fields: any other field of :class:`harness.plan.benching.Request`.

    Raises:
        UsageError: the model cannot be loaded or run, or an option is wrong.
    """
    from rich.console import Console

    from harness.plan.benching import Request
    from harness.plan.benching import bench as measure

    if not isinstance(factory, str):
        if factory.__module__ == "__main__" or "<" in factory.__qualname__:
            raise UsageError(f"{factory.__qualname__}: other processes cannot import it; put it into a module")
        factory = f"{factory.__module__}:{factory.__qualname__}"
    return measure(Request(factory, tuple(input), Path(store), methods=tuple(methods), **fields), Console(quiet=True))


def _ref(kind: str, named: Named) -> Ref:
    options = {} if isinstance(named, str) else {k: v for k, v in named.items() if k != "name"}
    name = named if isinstance(named, str) else str(named.get("name", ""))
    return registry.complete(kind, name, options, where=f"{registry.SINGULAR[kind]} of cell()")
