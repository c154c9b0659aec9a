"""Inputs for the kernels' tests: shapes, dtypes and memory layouts that Hypothesis draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

NEEDS = "needs Triton, which a CPU build of torch does not bring: `tox -e kernels` installs it and runs its interpreter"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
GRADIENT = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Relative L2 that gradients may differ by: torch rounds half precision at every step, the kernels at the end."""
LAYOUTS = ("contiguous", "channels_last", "permuted", "gaps", "repeated")
drawn = settings(
    max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
"""The same examples in every run."""
few = settings(drawn, max_examples=5)
"""For tests with a launch a step and sample, which the interpreter runs one after the other."""


@dataclass(frozen=True)
class Case:
    """A sequence to draw.

    Args:
        shape: ``[T, N, C, H, W]``.
        dtype: of the sequence.
        layout: one of :data:`LAYOUTS`.
        seed: of its values.
    """

    shape: tuple[int, int, int, int, int]
    dtype: torch.dtype
    layout: str
    seed: int

    def normal(self, scale: float = 1.0, offset: int = 0) -> Tensor:
        """Normal values of this shape and layout."""
        draw = torch.Generator().manual_seed(self.seed + offset)
        x = torch.randn(self.shape, generator=draw, dtype=torch.float64).mul(scale).to(self.dtype)
        return arranged(x.to(DEVICE), self.layout)


def cases(dtypes: tuple[torch.dtype, ...] = DTYPES, layouts: tuple[str, ...] = LAYOUTS) -> st.SearchStrategy[Case]:
    """Sequences of one to seven steps, of one element up to more than one of the kernels' blocks a step."""
    shape = st.tuples(
        st.integers(1, 7), st.integers(1, 4), st.integers(1, 5), st.integers(1, 7), st.sampled_from([1, 2, 5, 9])
    )
    return st.builds(Case, shape, st.sampled_from(dtypes), st.sampled_from(layouts), st.integers(0, 1 << 16))


def arranged(x: Tensor, layout: str) -> Tensor:
    """The values of ``x [T, N, C, H, W]`` in another memory layout."""
    if layout == "channels_last":
        return x.flatten(0, 1).to(memory_format=torch.channels_last).view(x.shape)
    if layout == "permuted":
        return x.permute(4, 2, 0, 3, 1).contiguous().permute(2, 4, 1, 3, 0)
    if layout == "gaps":
        return torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]
    if layout == "repeated":
        return x[:1].expand(x.shape)
    return x.contiguous()


def relative(got: Tensor, wanted: Tensor) -> float:
    """Relative L2 difference in double precision."""
    got, wanted = got.detach(), wanted.detach()
    difference = (got.double() - wanted.double()).norm()
    return float(difference / wanted.double().norm().clamp_min(1e-30))
