"""Records as one tidy table: a row a record, headline numbers in columns, null where a record has none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import UsageError
from harness.record import Ops, Record, Split, Status
from harness.spec import PHASES
from harness.store.disk import write_atomic
from harness.store.files import Stored, uncollected

# fmt: off
MEMORY = [
    "peak_live_bytes", "peak_activation_bytes", "saved_bytes", "static_bytes", "host_peak_bytes",
    "cuda_allocated_bytes", "cuda_reserved_bytes", "cuda_requested_bytes", "nvml_process_bytes",
    "plan_seconds", "kernel_path",
]
TIMING = [
    "step_time_s", "iqr_s", "ci_low_s", "ci_high_s", "samples_per_s", "cv", "energy_per_step_j", "ratio", "ratio_low",
    "ratio_high", "verdict", "paired",
]
FIDELITY = ["relative_l2", "cosine", "max_abs", "flipped_spikes", "exact"]
OPS = ["forward_flops", "step_flops", "synops"]

_KINDS: list[tuple[str, list[str]]] = [
    ("object", ["store", "suite", "cell", "run_id", "created", "path", "fingerprint", "group", "profile"]),
    ("object", ["method", "method_label", "gradient", "model_change", "numerics", "reconstruction", "baseline"]),
    ("object", ["model", "model_label", "normalisation"]),
    ("whole", ["parameters"]),
    ("object", ["data", "data_label", "data_variant", "data_synthetic"]),
    ("int64", ["T", "batch", "devices"]),
    ("object", ["loss", "criterion", "optimizer"]),
    ("float64", ["lr"]),
    ("int64", ["epochs"]),
    ("object", ["precision", "device", "phases", "predicted"]),
    ("int64", ["seed"]),
    ("object", ["status", "failed_phase", "reason", *(f"status_{phase}" for phase in ("build", *PHASES))]),
    ("whole", MEMORY[:-2]),
    ("whole", [f"split_{part}_bytes" for part in Split.model_fields]),
    ("float64", ["plan_seconds"]),
    ("object", ["kernel_path"]),
    ("float64", TIMING[:-2]),
    ("object", TIMING[-2:]),
    ("float64", [f"initial_{name}" for name in FIDELITY[:-1]]),
    ("object", ["initial_exact"]),
    ("float64", [f"trained_{name}" for name in FIDELITY[:-1]]),
    ("object", ["trained_exact"]),
    ("float64", ["tolerance"]),
    ("whole", OPS),
    ("float64", ["firing_rate", "final_test_accuracy", "final_train_loss", "train_seconds"]),
    ("whole", ["train_steps"]),
    ("object", ["weights_sha256", "cpu", "gpu"]),
]
# fmt: on
"""``whole``: numbers that may be absent, so floats in a frame (exact to 2^53), yet integers in an export."""
COLUMNS = {name: kind for kind, names in _KINDS for name in names}
"""All columns in their order, with their kind."""
_NOTHING: dict[str, Any] = dict.fromkeys(COLUMNS)


def frame(stored: Iterable[Stored], all_runs: bool = False) -> pd.DataFrame:
    """One row a record, in the order given.

    Identity (``suite``, ``cell``, ``run_id``, ``path``, ``created``, ``fingerprint``), the spec's fields, ``status``
    and a column per phase, and headline metrics, null where not measured. ``group`` is the hash of the spec without
    its seed. ``method_label`` holds the options too. All columns exist even where there is no row.

    Args:
        stored: records with their paths, of one store or several.
        all_runs: also the runs of a cell that a later one has replaced.
    """
    with uncollected():
        # row by row: ten thousand records are most of a gigabyte, their rows a few megabytes
        rows = [_row(item) for item in stored]
        table = pd.DataFrame(rows if all_runs else _latest(rows), columns=list(COLUMNS), dtype=object)
    return table.astype({name: "float64" if kind == "whole" else kind for name, kind in COLUMNS.items()})


def export(table: pd.DataFrame, dest: Path) -> Path:
    """Write a frame to a file, by its suffix.

    Args:
        table: as :func:`frame` gives it.
        dest: ``.parquet`` or ``.csv``, replaced where it exists.

    Raises:
        UsageError: another suffix, or the file cannot be written.
    """
    whole: pd.DataFrame = table.astype(
        {name: "Int64" for name, kind in COLUMNS.items() if kind == "whole" and name in table}
    )
    writers: dict[str, Callable[[Path], object]] = {
        ".parquet": lambda path: whole.to_parquet(path, index=False),
        ".csv": lambda path: whole.to_csv(path, index=False),
    }
    if dest.suffix not in writers:
        raise UsageError(f"{dest}: unknown format {dest.suffix!r}. Allowed: {', '.join(writers)}")
    try:
        return write_atomic(dest, writers[dest.suffix])
    except OSError as error:
        raise UsageError(f"{dest}: cannot write: {error.strerror or error}") from None


def _latest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last run of every cell of a suite in a store, in the order given."""
    latest: dict[Path, dict[str, Any]] = {}
    for row in rows:
        folder = Path(row["path"]).parent  # one for each cell of a suite in a store
        if folder not in latest or _age(row) > _age(latest[folder]):
            latest[folder] = row
    kept = {row["path"] for row in latest.values()}
    return [row for row in rows if row["path"] in kept]


def _age(row: dict[str, Any]) -> tuple[str, str]:
    return row["created"], row["run_id"]


def _root(path: Path) -> Path:
    return path.parents[2]


def _row(item: Stored) -> dict[str, Any]:
    record = item.record
    return {
        **_NOTHING,
        **_identity(item),
        **_spec(record),
        **_status(record),
        **_measured(record),
        **_fidelities(record),
        **_context(record),
    }


def _identity(item: Stored) -> dict[str, Any]:
    record = item.record
    return {
        "store": _root(item.path).name,
        "suite": record.suite,
        "cell": record.cell,
        "run_id": record.run_id,
        "created": record.created,
        "path": str(item.path),
        "fingerprint": record.fingerprint,
        "group": record.spec.group("seed"),
    }


def _spec(record: Record) -> dict[str, Any]:
    spec = record.spec
    return {
        "profile": spec.profile,
        "method": spec.method.name,
        "method_label": spec.method.label,
        "baseline": spec.baseline,
        "model": spec.model.name,
        "model_label": spec.model.label,
        "data": spec.data.name,
        "data_label": spec.data.label,
        "T": spec.T,
        "batch": spec.batch,
        "devices": spec.devices,
        "loss": spec.loss.kind,
        "criterion": spec.loss.criterion,
        "optimizer": spec.recipe.optimizer,
        "lr": spec.recipe.lr,
        "epochs": spec.recipe.epochs,
        "precision": spec.precision,
        "device": spec.device,
        "seed": spec.seed,
        "phases": "+".join(spec.phases),
        "predicted": spec.predicted,
    }


def _status(record: Record) -> dict[str, Any]:
    failed = next(
        ((name, phase) for name, phase in record.phases.items() if phase.status == record.status != "ok"), None
    )
    statuses: dict[str, Status] = {f"status_{name}": phase.status for name, phase in record.phases.items()}
    return {
        "status": record.status,
        "failed_phase": failed[0] if failed else None,
        "reason": failed[1].reason if failed else None,
        **statuses,
    }


def _measured(record: Record) -> dict[str, Any]:
    row = _take(record.memory, MEMORY) | _take(record.timing, TIMING) | _take(record.ops, OPS)
    if record.memory is not None and record.memory.split is not None:
        row |= {f"split_{part}_bytes": size for part, size in record.memory.split.model_dump().items()}
    if record.ops is not None:
        row["firing_rate"] = _mean_rate(record.ops)
    training = record.training
    if training is not None:
        row["final_test_accuracy"] = training.final_test_accuracy
        row["final_train_loss"] = training.epochs[-1].train_loss if training.epochs else None
        row["train_seconds"], row["train_steps"] = training.seconds, training.steps
        row["weights_sha256"] = training.weights_sha256
    return row


def _fidelities(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for block in record.fidelity:
        row |= {f"{block.at}_{name}": value for name, value in _take(block, FIDELITY).items()}
        row["tolerance"] = block.tolerance
    return row


def _context(record: Record) -> dict[str, Any]:
    gpus = (record.provenance.get("gpu") or {}).get("devices") or []
    return {
        "gradient": record.method.get("gradient"),
        "model_change": record.method.get("model"),
        "numerics": record.method.get("numerics"),
        "reconstruction": record.method.get("reconstruction"),
        "normalisation": record.normalisation,
        "parameters": record.parameters,
        "data_variant": record.data.get("variant"),
        "data_synthetic": record.data.get("synthetic"),
        "cpu": (record.provenance.get("cpu") or {}).get("model"),
        "gpu": ", ".join(str(gpu.get("name")) for gpu in gpus) if record.spec.device == "cuda" else None,
    }


def _take(block: Any, names: Iterable[str]) -> dict[str, Any]:
    return {} if block is None else {name: getattr(block, name) for name in names}


def _mean_rate(ops: Ops) -> float | None:
    return sum(layer.firing_rate for layer in ops.layers) / len(ops.layers) if ops.layers else None
