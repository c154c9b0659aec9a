"""Which implementation of a kernel runs: Triton on a CUDA device where it is installed, torch everywhere else."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

SWITCH = "SNNBENCH_KERNELS"
"""Environment variable: ``torch`` turns the Triton kernels off (to compare the two, or where Triton misbehaves)."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@functools.cache
def triton_installed() -> bool:
    """Whether Triton is at hand; it is imported only by the kernels themselves."""
    return importlib.util.find_spec("triton") is not None


def triton_at(device: torch.device) -> bool:
    """Whether kernels on ``device`` are Triton's."""
    return device.type == "cuda" and os.environ.get(SWITCH) != "torch" and triton_installed()
