"""What all Triton kernels share: when they can run, and arithmetic that rounds as torch's operators do.

Import this module only where :func:`methods.kernels.choice.triton_at` says that Triton is at hand.
"""

from __future__ import annotations

import contextlib
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y"))
"""True under Triton's interpreter, which runs kernels on CPU tensors. It is fixed at import, as in Triton itself."""
WIDE = {torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float32, torch.bfloat16: tl.float32}
"""The dtype that values of a dtype are computed in (torch's ``opmath``): half precision rounds after each operator."""
ALGEBRA = {} if INTERPRETED.value else {"enable_fp_fusion": False}
"""Launch options: no product is fused with a sum, so that numbers are those of torch's separate operators."""


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Launches inside go to ``device``."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def blocks(count: int, block: int) -> tuple[int]:
    """The grid that covers ``count`` elements."""
    return (triton.cdiv(count, block),)


def is_dense(x: Tensor) -> bool:
    """True if ``x`` covers its memory without gaps or overlap."""
    return x.is_contiguous() or torch.empty_like(x, device="meta").stride() == x.stride()


@triton.jit
def rounded(value, KIND: tl.constexpr, COMPUTE: tl.constexpr):
    """``value`` rounded to ``KIND``, to nearest even, in ``COMPUTE``."""
    if INTERPRETED and KIND == tl.bfloat16:
        # The interpreter cuts off where a device rounds.
        bits = value.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        return tl.where(value == value, nearest.to(tl.float32, bitcast=True), value)
    else:
        return value.to(KIND).to(COMPUTE)
