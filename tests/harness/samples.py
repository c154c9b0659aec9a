"""A realistic, complete record to build tests from."""

from __future__ import annotations

from typing import Any

from harness.record import (
    Epoch,
    Fidelity,
    LayerActivity,
    LayerError,
    Memory,
    ModuleBytes,
    Ops,
    PhaseResult,
    Record,
    Split,
    Timing,
    Training,
)
from harness.spec import PHASES, CellSpec, Recipe, Ref

CPU_ONLY = "needs a CUDA device; this cell ran on cpu"
LAYERS = ("stages.0.conv", "stages.1.conv", "stages.2.conv", "head.linear")


def sample_spec(**changes: Any) -> CellSpec:
    """A cell: checkpointed BPTT of a small VGG on digits, all phases."""
    fields: dict[str, Any] = {
        "method": Ref(name="checkpoint", options={"segments": 2}),
        "baseline": "bptt",
        "model": Ref(name="vgg", options={"channels": [32, 64], "tau": 2.0}),
        "data": Ref(name="digits", options={"encoding": "direct"}),
        "T": 8,
        "batch": 32,
        "recipe": Recipe(lr=0.05, epochs=3, schedule="cosine"),
        "profile": "cpu",
        "phases": PHASES,
    }
    return CellSpec(**{**fields, **changes})


def sample_record(**changes: Any) -> Record:
    """A record with every block filled, as a CPU cell leaves it; ``changes`` replace fields.

    A changed ``spec`` changes ``cell`` with it; a changed ``status`` leaves the blocks as they are.
    """
    spec = changes.get("spec", sample_spec())
    fields: dict[str, Any] = {
        "run_id": "20261121T065101Z-0a1b2c3d",
        "cell": spec.hash,
        "suite": "quick",
        "spec": spec,
        "created": "2026-11-21T06:51:01+00:00",
        "status": "ok",
        "phases": {name: PhaseResult(status="ok", seconds=1.25) for name in ("build", *PHASES)},
        "fidelity": [sample_fidelity("initial"), sample_fidelity("trained")],
        "memory": sample_memory(),
        "timing": sample_timing(),
        "ops": sample_ops(),
        "training": sample_training(),
        "method": {
            "gradient": "exact",
            "model": "same",
            "numerics": "same",
            "paper": "Chen et al. 2016",
            "reconstruction": False,
        },
        "data": {
            "sample": [1, 8, 8],
            "classes": 10,
            "source": "scikit-learn digits",
            "sha256": "5e" * 32,
            "variant": "8x8 digits in place of MNIST",
            "synthetic": False,
            "details": {"train": 1437, "test": 360},
        },
        "normalisation": "over_time",
        "parameters": 54_410,
        "plan": {"segments": 2},
        "fingerprint": "00112233aabbccdd",
        "provenance": sample_provenance(),
    }
    return Record(**{**fields, **changes})


def sample_fidelity(at: str = "initial", **changes: Any) -> Fidelity:
    """An exact method's gradients: rounding-level errors."""
    layers = [
        LayerError(name=f"{layer}.{kind}", relative_l2=1.2e-7 * (i + 1), cosine=1.0, max_abs=3.1e-8)
        for i, layer in enumerate(LAYERS)
        for kind in ("weight", "bias")
    ]
    fields: dict[str, Any] = {
        "at": at,
        "reference": "bptt",
        "relative_l2": 2.4e-7,
        "cosine": 0.9999999999,
        "max_abs": 6.2e-8,
        "flipped_spikes": 0.0,
        "loss_difference": 0.0,
        "rounding": 3.0e-6,
        "tolerance": 1e-5,
        "exact": True,
        "layers": layers,
        "silent_layers": [],
    }
    return Fidelity(**{**fields, **changes})


def sample_memory(**changes: Any) -> Memory:
    """A step's ledger: the split adds up to the peak."""
    split = Split(
        parameters=217_640, buffers=1_536, gradients=98_304, optimizer=217_640, inputs=65_536, activations=4_194_304,
        temporaries=1_048_576,
    )  # fmt: skip
    peak = sum(split.model_dump().values())
    fields: dict[str, Any] = {
        "peak_live_bytes": peak,
        "split": split,
        "peak_activation_bytes": split.activations + split.temporaries,
        "saved_bytes": 3_670_016,
        "static_bytes": 502_352,
        "by_module": [
            ModuleBytes(module=layer, origin=origin, bytes=400_000 + 1_000 * i)
            for i, layer in enumerate(LAYERS)
            for origin in ("forward", "backward", "recompute")
        ],
        "timeline": [(event, 502_352 + peak * min(event, 160 - event) // 160) for event in range(160)],
        "events": 160,
        "host_peak_bytes": 9_437_184,
        "cuda_allocated_bytes": None,
        "cuda_reserved_bytes": None,
        "cuda_requested_bytes": None,
        "nvml_process_bytes": None,
        "kernel_path": "torch",
        "plan_seconds": 0.012,
        "reasons": dict.fromkeys(
            ("cuda_allocated_bytes", "cuda_reserved_bytes", "cuda_requested_bytes", "nvml_process_bytes"), CPU_ONLY
        ),
    }
    return Memory(**{**fields, **changes})


def sample_timing(**changes: Any) -> Timing:
    """Sixty paired samples around 21 ms."""
    fields: dict[str, Any] = {
        "step_time_s": 0.0213,
        "iqr_s": 0.0007,
        "ci_low_s": 0.0211,
        "ci_high_s": 0.0215,
        "samples_s": [0.0213 + 1.7e-5 * ((i * 37) % 60 - 30) for i in range(60)],
        "samples_per_s": 1502.3,
        "clock": "perf_counter",
        "warmup_steps": 12,
        "cv": 0.021,
        "drift": -0.004,
        "verdict": "stable",
        "disturbances": [],
        "baseline": "bptt",
        "baseline_step_time_s": 0.0161,
        "ratio": 1.323,
        "ratio_low": 1.301,
        "ratio_high": 1.346,
        "paired": True,
        "energy_per_step_j": None,
        "reasons": {"energy_per_step_j": CPU_ONLY},
    }
    return Timing(**{**fields, **changes})


def sample_ops(**changes: Any) -> Ops:
    """Counts of one step."""
    fields: dict[str, Any] = {
        "forward_flops": 301_989_888,
        "step_flops": 905_969_664,
        "synops": 48_234_496,
        "layers": [LayerActivity(name=f"stages.{i}.neuron", firing_rate=0.21 - 0.04 * i) for i in range(3)],
        "uncounted": {"aten.heaviside": 24},
    }
    return Ops(**{**fields, **changes})


def sample_training(**changes: Any) -> Training:
    """Three epochs that learn."""
    epochs = [
        Epoch(
            epoch=i + 1,
            train_loss=2.1 / (i + 1),
            train_accuracy=0.5 + 0.15 * i,
            test_loss=2.2 / (i + 1),
            test_accuracy=0.48 + 0.16 * i,
            seconds=3.4,
        )
        for i in range(3)
    ]
    fields: dict[str, Any] = {
        "epochs": epochs,
        "final_test_accuracy": epochs[-1].test_accuracy,
        "seconds": 10.2,
        "steps": 132,
        "train_samples": 1437,
        "test_samples": 360,
        "weights_sha256": "a7" * 32,
    }
    return Training(**{**fields, **changes})


def sample_provenance() -> dict[str, Any]:
    """What :func:`harness.provenance.collect` gives on a small CPU machine."""
    return {
        "code": {"git_sha": "0f" * 20, "git_dirty": False, "sha256": "c3" * 32},
        "packages": {"torch": "2.13.0+cpu", "spikingjelly": "2.0.0", "numpy": "2.3.1", "snnbench": "0.1.0"},
        "python": {"version": "3.11.9", "implementation": "CPython"},
        "system": {"os": "Linux", "kernel": "6.1.0", "machine": "x86_64", "host": "9f86d081884c"},
        "cpu": {"model": "AMD EPYC 7B13", "cores": 2, "usable_cores": 2, "governor": None},
        "memory": {"total_bytes": 8_589_934_592, "cgroup_limit_bytes": None},
        "gpu": {"devices": None, "driver": None, "cuda": None},
        "torch": {"version": "2.13.0+cpu", "git": "de" * 20, "cuda": None, "cudnn": None},
        "determinism": {"cudnn_benchmark": False, "cudnn_deterministic": False, "deterministic_algorithms": False},
        "environment": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": None},
        "device": "cpu",
        "threads": 1,
        "load_average": [0.4, 0.3, 0.2],
        "reasons": {"gpu": "NVML: Shared library not found", "cpu.governor": "no cpufreq here"},
    }
