"""Records of an invented suite, with numbers that follow simple rules so that tests can recompute them.

The bytes and times below are made up; only their relations matter (linear or flat in T, exact or biased).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.record import Epoch, LayerError, ModuleBytes, PhaseResult, Record, Split
from harness.spec import PHASES, Ref
from reports.groups import Item
from tests.harness.samples import (
    sample_fidelity,
    sample_memory,
    sample_provenance,
    sample_record,
    sample_spec,
    sample_timing,
    sample_training,
)

KIB = 1024
SUITE = "invented"
"""A name that no installed suite has."""
STAGES = tuple(f"stages.{i}" for i in range(6))


@dataclass(frozen=True)
class Invented:
    """A method: share of BPTT's activations kept, flat in T or not, time factor, accuracy loss, gradient error."""

    ref: Ref
    kept: float
    flat: bool
    slower: float
    worse: float
    error: float
    exact: bool = True
    reconstruction: bool = False


METHODS: tuple[Invented, ...] = (
    Invented(Ref(name="bptt"), 1.0, False, 1.0, 0.0, 0.0),
    Invented(Ref(name="checkpoint"), 0.5, False, 1.32, 0.0, 2e-7),
    Invented(Ref(name="checkpoint-compress", options={"restore": True}), 0.3, False, 1.5, 0.001, 3e-7),
    Invented(Ref(name="sltt", options={"K": 0}), 1.0, True, 0.9, 0.02, 0.4, exact=False),
    Invented(Ref(name="sltt", options={"K": 2}), 1.0, True, 0.7, 0.03, 0.6, exact=False),
    Invented(Ref(name="stdl", options={"K": 4}), 0.6, True, 1.1, 0.04, 0.7, exact=False, reconstruction=True),
)


def run_id(number: int) -> str:
    """The run id of the n-th invented run."""
    return f"20261121T{number // 3600 % 24:02d}{number // 60 % 60:02d}{number % 60:02d}Z-{number:08x}"


def record(method: Invented, number: int, width: int = 1, **changes: Any) -> Record:
    """A complete record of one invented cell; ``changes`` go to the spec.

    Args:
        method: whose behaviour.
        number: makes the run id and the time of creation.
        width: scales the bytes.
    """
    spec = sample_spec(**{"method": method.ref, "phases": PHASES, **changes})
    promises = {"gradient": "exact" if method.exact else "biased", "model": "same", "numerics": "same",
                "paper": "-", "reconstruction": method.reconstruction}  # fmt: skip
    stamp = run_id(number)
    return sample_record(
        suite=SUITE,
        spec=spec,
        run_id=stamp,
        created=f"2026-11-21T{stamp[9:11]}:{stamp[11:13]}:{stamp[13:15]}+00:00",
        method=promises,
        fidelity=[_fidelity(method, "initial"), _fidelity(method, "trained")],
        memory=memory(method, spec.T, spec.batch * width),
        timing=_timing(method, spec.T),
        training=training(
            0.95 - method.worse + 0.004 * math.sin(7 * spec.seed + 3 * method.slower), spec.recipe.epochs
        ),
        provenance=sample_provenance(),
    )


def predicted(method: Invented, number: int, width: int = 1, **changes: Any) -> Record:
    """The same cell's prediction: the memory block alone."""
    done = record(method, number, width, **{**changes, "predicted": True, "phases": ("memory",)})
    return done.model_copy(update={
        "fidelity": [], "timing": None, "training": None, "ops": None,
        "phases": {name: PhaseResult(status="ok", seconds=0.5) for name in ("build", "memory")},
    })  # fmt: skip


def failed(method: Invented, number: int, status: str = "oom", phase: str = "memory", **changes: Any) -> Record:
    """A record that failed in one phase; what follows it is missing."""
    done = record(method, number, **changes)
    phases = dict(done.phases)
    reason = "RuntimeError: you tried to allocate 536870912 bytes" if status == "oom" else f"it was {status}"
    phases[phase] = PhaseResult(
        status=status, seconds=2.0, reason=reason,  # type: ignore[arg-type]
        bytes_requested=536870912 if status == "oom" else None,
    )  # fmt: skip
    gone = {"fidelity": [], "memory": None, "timing": None, "training": None, "ops": None}
    normalisation = None if phase == "build" else done.normalisation
    return done.model_copy(update={**gone, "phases": phases, "status": status, "normalisation": normalisation})


def memory(method: Invented, steps: int, batch: int) -> Any:
    """A ledger whose activations are ``kept * T * batch * 8 KiB`` (without T where flat)."""
    activations = int(method.kept * (1 if method.flat else steps) * batch * 8 * KIB)
    split = Split(parameters=200 * KIB, gradients=90 * KIB, optimizer=200 * KIB, inputs=steps * batch * KIB,
                  activations=activations, temporaries=64 * KIB)  # fmt: skip
    peak = sum(split.model_dump().values())
    weights = [2 ** -abs(i - 1) for i in range(len(STAGES))]
    modules = [
        ModuleBytes(module=f"{stage}.{part}", origin="forward", bytes=int(activations * w / sum(weights) / 2))
        for stage, w in zip(STAGES, weights, strict=True)
        for part in ("conv", "neuron")
    ]
    low = split.parameters + split.optimizer + split.inputs
    height = peak - low
    wave = [(e, low + int(height * (min(e, 400 - e) / 200) * (0.9 + 0.1 * math.sin(e)))) for e in range(400)]
    wave[200] = (200, peak)
    return sample_memory(
        peak_live_bytes=peak, split=split, peak_activation_bytes=activations + 64 * KIB, saved_bytes=activations,
        static_bytes=low, by_module=modules, timeline=wave, events=400,
    )  # fmt: skip


def training(final: float, epochs: int) -> Any:
    """Curves that approach ``final``."""
    curve = [
        Epoch(epoch=e, train_loss=2.3 * 0.5**e, train_accuracy=final * (1 - 0.5**e), test_loss=2.4 * 0.55**e,
              test_accuracy=final if e == epochs else final * (1 - 0.45**e), seconds=2.0)
        for e in range(1, epochs + 1)
    ]  # fmt: skip
    return sample_training(epochs=curve, final_test_accuracy=final)


def _fidelity(method: Invented, at: str) -> Any:
    layers = [
        LayerError(name=f"{stage}.conv.weight", relative_l2=method.error * (i + 1) / 6, cosine=1 - method.error / 2,
                   max_abs=method.error / 10)
        for i, stage in enumerate(STAGES)
    ]  # fmt: skip
    return sample_fidelity(at, relative_l2=method.error, cosine=1 - method.error / 2, exact=method.exact, layers=layers)


def _timing(method: Invented, steps: int) -> Any:
    seconds, base = 0.002 * steps * method.slower, 0.002 * steps
    change: dict[str, Any] = {"step_time_s": seconds, "ci_low_s": seconds * 0.99, "ci_high_s": seconds * 1.01,
                              "baseline_step_time_s": base, "ratio": method.slower,
                              "ratio_low": method.slower - 0.02, "ratio_high": method.slower + 0.02}  # fmt: skip
    if method.ref.name == "bptt":
        names = ("baseline_step_time_s", "ratio", "ratio_low", "ratio_high")
        change |= dict.fromkeys(names) | {"paired": False}
        change["reasons"] = dict.fromkeys((*names, "energy_per_step_j"), "this is the baseline")
    return sample_timing(**change)


def suite(
    methods: Iterable[Invented] = METHODS, steps: Sequence[int] = (4, 8, 16), seeds: Sequence[int] = (0, 1, 2)
) -> Iterator[Record]:
    """A small suite: every method at every T and seed, an out-of-memory cell, an unsupported one, predictions."""
    number = itertools.count()
    cells = list(itertools.product(methods, steps, seeds))
    for method, T, seed in cells:
        if method.ref.name == "bptt" and max(steps) == T and seed == max(seeds):
            yield failed(method, next(number), T=T, seed=seed)
        else:
            yield record(method, next(number), T=T, seed=seed)
    for method, T in itertools.product(list(methods)[:3], steps):
        yield predicted(method, next(number), T=T)
    ottt = Invented(Ref(name="ottt"), 1, True, 1, 0, 0.5, exact=False)
    yield failed(ottt, next(number), "unsupported", "build", T=steps[0])


def items(records: Iterable[Record], root: Path = Path("results/here")) -> list[Item]:
    """Records as items, at the paths where a store would keep them."""
    return [Item(root / r.suite / r.cell / f"{r.run_id}.json", r) for r in records]
