"""Where a record comes from: code, versions, machine and settings, and one digest of what numbers depend on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import PurePath
from typing import Any

import torch

from harness.provenance import code as codefacts
from harness.provenance import machine
from harness.provenance.facts import Facts, NotAvailableError
from harness.spec import canonical_json, digest

ENVIRONMENT = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND", "KMP_AFFINITY", "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TRITON_INTERPRET",
    "MALLOC_CONF", "LD_PRELOAD",
)  # fmt: skip
"""Variables that change speed, memory or numbers; null where unset."""


def collect(device: str, threads: int) -> dict[str, Any]:
    """Everything about this process that a reader of its numbers may ask for.

    Asks NVML, never CUDA, so a parent that will fork may call it; where this process has initialised CUDA itself, its
    own device is told exactly. Takes about a tenth of a second.

    Args:
        device: ``cpu`` or ``cuda``.
        threads: intra-op threads that the cell runs with.

    Returns:
        Nested tables; every null has a line in ``reasons`` under its dotted name, save unset environment variables.
    """
    facts = Facts()
    facts.put("device", device)
    facts.put("threads", threads)
    _code(facts)
    _system(facts)
    _gpu(facts)
    _torch(facts)
    facts.put("environment", {name: _setting(name) for name in ENVIRONMENT})
    return facts.values


def fingerprint(provenance: dict[str, Any]) -> str:
    """Sixteen hex digits over what makes numbers incomparable: sources, versions, processor or GPU, threads.

    The git commit is left out (a commit of a text file changes no number), and so are packages that compute nothing,
    load, memory and clocks. GPUs count only for records of a GPU.

    Args:
        provenance: as :func:`collect` gives it; what is missing counts as null.
    """
    gpu = provenance.get("gpu") or {}
    packages = provenance.get("packages") or {}
    names = sorted({str(d.get("name")) for d in gpu.get("devices") or []})
    parts = {
        "code": (provenance.get("code") or {}).get("sha256"),
        "packages": {name: packages[name] for name in codefacts.NUMERIC if name in packages},
        "python": (provenance.get("python") or {}).get("version"),
        "cpu": (provenance.get("cpu") or {}).get("model"),
        "torch": provenance.get("torch"),
        "threads": provenance.get("threads"),
        "device": provenance.get("device"),
        "gpu": names if provenance.get("device") == "cuda" else None,
    }
    return digest(canonical_json(parts))


def _code(facts: Facts) -> None:
    folders = codefacts.package_folders()
    here = folders["harness"]
    facts.ask("code.sha256", codefacts.source_hash)
    facts.ask("code.git_sha", lambda: codefacts.git_commit(codefacts.git_root(here)))
    facts.ask("code.git_dirty", lambda: codefacts.git_dirty(codefacts.git_root(here), list(folders.values())))
    facts.put("code.plugins", codefacts.plugin_distributions())
    facts.put("packages", codefacts.versions())
    facts.put("python", {"version": platform.python_version(), "implementation": platform.python_implementation()})


def _system(facts: Facts) -> None:
    facts.put("system.os", platform.system())
    facts.put("system.kernel", platform.release())
    facts.put("system.machine", platform.machine())
    facts.put("system.host", machine.host_hash())
    facts.ask("cpu.model", machine.cpu_model)
    facts.put("cpu.cores", os.cpu_count())
    facts.ask("cpu.usable_cores", machine.usable_cores)
    facts.ask("cpu.governor", machine.governor)
    facts.ask("memory.total_bytes", machine.total_memory)
    facts.ask("memory.cgroup_limit_bytes", machine.cgroup_limit)
    facts.ask("load_average", _load)


def _gpu(facts: Facts) -> None:
    facts.put("gpu", dict.fromkeys(("devices", "driver", "cuda")))
    try:
        facts.put("gpu", machine.gpus(_visible()))
    except NotAvailableError as error:
        facts.values["reasons"] |= {f"gpu.{key}": str(error) for key in facts.values["gpu"]}


def _visible() -> list[str] | None:
    if torch.cuda.is_initialized():
        return [f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"]
    return machine.visible_gpus()


def _torch(facts: Facts) -> None:
    facts.put("torch.version", torch.__version__)
    facts.put("torch.git", torch.version.git_version)
    facts.ask("torch.cuda", lambda: _built(torch.version.cuda))
    facts.ask("torch.cudnn", lambda: _built(torch.backends.cudnn.version() if torch.version.cuda else None))
    facts.put("determinism.cudnn_benchmark", torch.backends.cudnn.benchmark)
    facts.put("determinism.cudnn_deterministic", torch.backends.cudnn.deterministic)
    facts.put("determinism.deterministic_algorithms", torch.are_deterministic_algorithms_enabled())
    facts.put("determinism.matmul_allow_tf32", torch.backends.cuda.matmul.allow_tf32)
    facts.put("determinism.cudnn_allow_tf32", torch.backends.cudnn.allow_tf32)
    facts.put("determinism.intra_op_threads", torch.get_num_threads())


def _built(version: Any) -> Any:
    if version is None:
        raise NotAvailableError("this build of torch is for CPUs only")
    return version


def _setting(name: str) -> str | None:
    value = os.environ.get(name)
    if value is None or name != "LD_PRELOAD":
        return value
    return " ".join(
        PurePath(part).name for part in re.split("[ :]+", value)
    )  # folders tell of people, names of libraries


def _load() -> list[float]:
    return [round(value, 2) for value in os.getloadavg()]
