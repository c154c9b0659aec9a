"""The record: the JSON result of one cell, schema-versioned.

Units are in the field names: bytes, seconds, joules, fractions; nothing is rounded. A metric that was not measured is
null, and the block's ``reasons`` says why under the field's name.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from harness.spec import CellSpec

SCHEMA_VERSION = 1

Status = Literal["ok", "oom", "timeout", "error", "killed", "diverged", "unsupported", "unavailable"]
STATUSES: tuple[Status, ...] = ("ok", "oom", "timeout", "error", "killed", "diverged", "unsupported", "unavailable")
WORST_FIRST: tuple[Status, ...] = (
    "killed", "timeout", "oom", "error", "diverged", "unavailable", "unsupported", "ok",
)  # fmt: skip


class _Block(BaseModel):
    """A group of metrics; every null has a reason."""

    model_config = ConfigDict(extra="forbid")
    reasons: dict[str, str] = {}

    @model_validator(mode="after")
    def _null_has_reason(self) -> _Block:
        for name, value in self.__dict__.items():  # several times faster than getattr over model_fields
            if value is None and name not in self.reasons:
                raise ValueError(f"{type(self).__name__}.{name} is null without a reason")
        return self


class PhaseResult(BaseModel):
    """How a phase ended. ``bytes_requested`` and ``limit_bytes`` are set by an ``oom`` that told them."""

    model_config = ConfigDict(extra="forbid")
    status: Status
    seconds: float | None = None
    reason: str | None = None
    traceback: str | None = None
    bytes_requested: int | None = None
    cuda_peaks: dict[str, int] = {}
    """Peaks of the CUDA allocator over the phase (``allocated_bytes``, ``reserved_bytes``, ``requested_bytes``); empty
    on a CPU."""


class LayerError(BaseModel):
    """A parameter's gradient against BPTT's."""

    name: str
    relative_l2: float | None
    cosine: float | None
    max_abs: float


class Fidelity(_Block):
    """The method's gradient against autograd BPTT of the prepared model on one batch, float32, TF32 off."""

    at: Literal["initial", "trained"]
    reference: str
    relative_l2: float
    cosine: float | None
    max_abs: float
    flipped_spikes: float | None
    loss_difference: float
    rounding: float
    """Relative L2 change of BPTT's own gradient under a rounding-level perturbation of the weights."""
    tolerance: float
    """max(1e-5, rounding): an exact method's error must not exceed it."""
    exact: bool
    layers: list[LayerError]
    silent_layers: list[str]
    """Neuron layers that fire less than once in a thousand: their gradients say little."""


class Split(BaseModel):
    """Live bytes at the peak instant, by what they are; the sum is the peak."""

    model_config = ConfigDict(extra="forbid")
    parameters: int = 0
    buffers: int = 0
    gradients: int = 0
    optimizer: int = 0
    inputs: int = 0
    activations: int = 0
    temporaries: int = 0


class ModuleBytes(BaseModel):
    """Bytes live at the peak that were allocated inside a module."""

    module: str
    origin: Literal["forward", "backward", "recompute", "other"]
    bytes: int


class RankMemory(BaseModel):
    """What one rank of a cell of several devices held; null as in :class:`Memory`."""

    model_config = ConfigDict(extra="forbid")
    rank: int
    peak_live_bytes: int | None
    peak_activation_bytes: int | None
    static_bytes: int | None
    host_peak_bytes: int | None
    cuda_allocated_bytes: int | None
    cuda_reserved_bytes: int | None
    cuda_requested_bytes: int | None
    nvml_process_bytes: int | None


class Memory(_Block):
    """One settled training step under the ledger, and what allocators and the process say beside it."""

    peak_live_bytes: int | None
    split: Split | None
    peak_activation_bytes: int | None
    """Part of the peak that is neither parameter, gradient, optimizer, buffer nor input: activations + temporaries."""
    saved_bytes: int | None
    """Live when a backward starts, less what was live before the step and less the logits; largest over backwards."""
    static_bytes: int | None
    """Live before the step: parameters, buffers, optimizer state, inputs."""
    by_module: list[ModuleBytes]
    timeline: list[tuple[int, int]]
    """(allocation event, live bytes), thinned at its extremes."""
    events: int
    host_peak_bytes: int | None
    """Rise of the process's resident peak (VmHWM, reset before) over a step, above its resident size before."""
    cuda_allocated_bytes: int | None
    cuda_reserved_bytes: int | None
    cuda_requested_bytes: int | None
    nvml_process_bytes: int | None
    cuda_facts: dict[str, Any] = {}
    """On CUDA, beside the peaks: ``modelled_allocated_bytes`` and ``modelled_reserved_bytes`` (the ledger's storages in
    a model of the caching allocator), ``workspace_bytes`` (cuBLAS's, in the allocator but not in the ledger),
    ``nvml_device_bytes`` (all processes together), ``nvml_device_delta_bytes`` (its rise since before the cell's process
    had a CUDA context; or ``nvml_device_reason``), ``snapshot`` (file beside the record)."""
    kernel_path: str
    plan_seconds: float | None
    ranks: list[RankMemory] = []
    """One for each device where there are several: this block is then the one of the rank with the highest peak, and
    the allocators' and the process's numbers are the highest of all ranks."""


class RankTiming(BaseModel):
    """Median step time of one rank of a cell of several devices, waiting for the others included."""

    model_config = ConfigDict(extra="forbid")
    rank: int
    step_time_s: float


class Timing(_Block):
    """Untracked settled steps, in rounds interleaved with the baseline's."""

    step_time_s: float
    iqr_s: float
    ci_low_s: float
    ci_high_s: float
    samples_s: list[float]
    samples_per_s: float
    clock: Literal["perf_counter", "cuda_event"]
    warmup_steps: int
    cv: float
    drift: float
    """Median of the last third of the samples over the median of the first, less one."""
    verdict: Literal["stable", "noisy", "disturbed"]
    disturbances: list[str]
    baseline: str
    baseline_step_time_s: float | None
    ratio: float | None
    """Median over rounds of method time / baseline time."""
    ratio_low: float | None
    ratio_high: float | None
    paired: bool
    energy_per_step_j: float | None
    energy_window: dict[str, Any] = {}
    """Seconds, steps, joules, idle watts, temperatures and source of the energy; empty where none was measured."""
    device_before: dict[str, Any] = {}
    """What NVML said of the device before the timed rounds: memory, power, temperature, clocks, throttling, processes
    of others. Empty on a CPU."""
    device_after: dict[str, Any] = {}
    ranks: list[RankTiming] = []
    """One for each device where there are several: a sample of this block is then the slowest rank's."""


class LayerActivity(BaseModel):
    """Mean of a neuron layer's output: spikes per neuron and time step."""

    name: str
    firing_rate: float


class Ops(_Block):
    """Arithmetic of one training step's forward, counted by SpikingJelly's op_counter."""

    forward_flops: int | None
    step_flops: int | None
    synops: int | None
    layers: list[LayerActivity]
    uncounted: dict[str, int]
    """Operators without a counting rule, and how often each ran."""


class Epoch(BaseModel):
    """One epoch of training; accuracies are fractions."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float


class Training(_Block):
    """Real training; the final epoch counts, never the best."""

    epochs: list[Epoch]
    final_test_accuracy: float | None
    seconds: float
    steps: int
    train_samples: int
    test_samples: int
    weights_sha256: str | None


class Distributed(_Block):
    """How the ranks of a cell of several devices work together."""

    devices: int
    rank_batch: int
    """Samples of a step that each rank has."""
    launcher: str
    backend: str
    gradient_sync: str
    bucket_bytes: int
    one_process_l2: float | None
    """Relative L2 distance of the ranks' mean gradient from the same method's in one process on the whole batch."""
    sync_batchnorm: bool | None
    """Whether batch normalisation takes its statistics over all ranks; null where none is used, or not everywhere."""


class Record(BaseModel):
    """The result of one cell."""

    model_config = ConfigDict(extra="forbid")
    schema_version: Literal[1] = 1
    run_id: str
    cell: str
    suite: str
    spec: CellSpec
    created: str
    """UTC, ISO 8601."""
    status: Status
    phases: dict[str, PhaseResult]
    fidelity: list[Fidelity] = []
    memory: Memory | None = None
    timing: Timing | None = None
    ops: Ops | None = None
    training: Training | None = None
    distributed: Distributed | None = None
    """None for a cell of one device."""
    method: dict[str, Any] = {}
    """The method's promises: gradient, model, numerics, paper, reconstruction."""
    data: dict[str, Any] = {}
    """sample shape, classes, source, sha256, variant, synthetic, details."""
    normalisation: str | None = None
    parameters: int | None = None
    plan: dict[str, Any] = {}
    fingerprint: str
    provenance: dict[str, Any]

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        if self.cell != self.spec.hash:
            raise ValueError(f"cell is {self.cell}, but the spec hashes to {self.spec.hash}")
        return self


def overall(phases: dict[str, PhaseResult]) -> Status:
    """A cell's status: the worst of its phases'."""
    present = {phase.status for phase in phases.values()}
    return next(status for status in WORST_FIRST if status in present or status == "ok")
