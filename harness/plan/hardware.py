"""What estimated times are weighed as: how fast a device computes and moves bytes, and how much memory it has.

Rates are data-sheet peaks: a dense product (no sparsity) with sums in float32, counted as two operations a
multiply-add. None of them is reached; a slow-down is a ratio of two steps on the same device, in which what both fall
short of cancels.

Memory is what a process sees: the "total capacity" of PyTorch's out-of-memory errors, the least that public reports show
for the card, rounded down to 0.1 GiB. It is less than the number on the box.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch

from harness.build import PRECISIONS
from harness.errors import unknown
from harness.spec import Precision

TERA, GIGA, GIB = 10**12, 10**9, 2**30


@dataclass(frozen=True)
class Bus:
    """The way to the host's memory.

    Args:
        name: for people.
        bytes_per_s: in one direction.
    """

    name: str
    bytes_per_s: float


# A lane's transfers a second, 16 lanes, 128 of 130 bits, 8 bits a byte: PCI-SIG, PCI Express Base Specifications 3.0,
# 4.0 and 5.0.
PCIE_3 = Bus("PCIe 3.0 x16", 15.75 * GIGA)
PCIE_4 = Bus("PCIe 4.0 x16", 31.5 * GIGA)
PCIE_5 = Bus("PCIe 5.0 x16", 63.0 * GIGA)


@dataclass(frozen=True)
class Hardware:
    """One kind of device.

    Args:
        name: as users write it.
        title: for people.
        memory_bytes: what a process sees; None: it differs from machine to machine.
        bytes_per_s: to and from its memory.
        fp32: float32 operations a second.
        source: where the figures are from.
        tf32: of float32 products on tensor cores in TF32; None: it has none, and float32's rate counts.
        bf16: of products in bfloat16; None as for ``tf32``.
        fp16: of products in float16; None as for ``tf32``.
        bus: to the host's memory; None: its memory is the host's, as a CPU's is.
    """

    name: str
    title: str
    memory_bytes: int | None
    bytes_per_s: float
    fp32: float
    source: str
    tf32: float | None = None
    bf16: float | None = None
    fp16: float | None = None
    bus: Bus | None = None

    @property
    def device(self) -> str:
        """What a cell calls it: ``cpu`` or ``cuda``."""
        return "cpu" if self.bus is None else "cuda"

    @property
    def kernels(self) -> bool:
        """Whether a fused neuron is one kernel; otherwise it is the operators of its torch fallback."""
        return self.device == "cuda"

    def flops(self, dtype: torch.dtype, tf32: bool = False) -> float:
        """Operations a second of products of tensors of a dtype.

        Args:
            dtype: of the operands.
            tf32: float32 products may use TF32.
        """
        own = {torch.bfloat16: self.bf16, torch.float16: self.fp16, torch.float32: self.tf32 if tf32 else None}
        return own.get(dtype) or self.fp32

    def described(self, precision: Precision) -> str:
        """Its title, and where it has no faster arithmetic for a precision, that."""
        how = PRECISIONS[precision]
        dtype = how.autocast or torch.float32
        if precision == "fp32" or self.flops(dtype, how.tf32) > self.fp32:
            return self.title
        return f"{self.title}, whose products in {precision.removeprefix('amp-')} count at float32's rate"


def _gpu(
    name: str, title: str, gib: float, gb_per_s: float, fp32: float, tf32: float | None, bf16: float | None,
    fp16: float, bus: Bus, source: str,
) -> Hardware:  # fmt: skip
    """A GPU; memory in GiB, bandwidth in GB/s, rates in TFLOP/s."""

    def rate(tera: float | None) -> float | None:
        return None if tera is None else tera * TERA

    return Hardware(
        name, title, int(gib * GIB), gb_per_s * GIGA, fp32 * TERA, source, rate(tf32), rate(bf16), rate(fp16), bus
    )


_ENTRIES = (
    #     name          title            GiB    GB/s  fp32  tf32   bf16   fp16
    _gpu("a100-40gb", "A100 40GB", 39.2, 1555, 19.5, 156.0, 312.0, 312.0, PCIE_4,
         "NVIDIA A100 Tensor Core GPU, data sheet (40GB)"),
    _gpu("a100-80gb", "A100 80GB SXM", 79.1, 2039, 19.5, 156.0, 312.0, 312.0, PCIE_4,
         "NVIDIA A100 Tensor Core GPU, data sheet (80GB SXM)"),
    _gpu("h100", "H100 80GB SXM", 79.1, 3350, 67.0, 494.5, 989.5, 989.5, PCIE_5,
         "NVIDIA H100 Tensor Core GPU, data sheet (SXM); 989 and 1,979 there are with sparsity, half without"),
    _gpu("h200", "H200 141GB SXM", 139.7, 4800, 67.0, 494.5, 989.5, 989.5, PCIE_5,
         "NVIDIA H200 Tensor Core GPU, data sheet (SXM); 989 and 1,979 there are with sparsity, half without"),
    _gpu("v100-16gb", "V100 16GB SXM2", 15.7, 900, 15.7, None, None, 125.0, PCIE_3,
         "NVIDIA V100 Tensor Core GPU, data sheet (SXM2)"),
    _gpu("v100-32gb", "V100 32GB SXM2", 31.7, 900, 15.7, None, None, 125.0, PCIE_3,
         "NVIDIA V100 Tensor Core GPU, data sheet (SXM2)"),
    _gpu("t4", "T4", 14.5, 320, 8.1, None, None, 65.0, PCIE_3,
         "NVIDIA T4, data sheet"),
    _gpu("l4", "L4", 22.0, 300, 30.3, 60.0, 121.0, 121.0, PCIE_4,
         "NVIDIA L4 Tensor Core GPU, data sheet; 120 and 242 there are with sparsity, half without"),
    _gpu("rtx-3090", "RTX 3090", 23.5, 936, 35.6, 35.6, 71.0, 71.0, PCIE_4,
         "NVIDIA Ampere GA102 GPU Architecture, white paper, with float32 sums"),
    _gpu("rtx-4090", "RTX 4090", 23.5, 1008, 82.6, 82.6, 165.2, 165.2, PCIE_4,
         "NVIDIA Ada GPU Architecture, white paper, with float32 sums"),
    _gpu("rtx-a6000", "RTX A6000", 47.4, 768, 38.7, 77.4, 154.8, 154.8, PCIE_4,
         "NVIDIA Ampere GA102 GPU Architecture, white paper; the data sheet's 309.7 is with sparsity"),
)  # fmt: skip

_CPU = Hardware(
    "cpu", "CPU (AMD EPYC 7763)", None, 204.8 * GIGA, 64 * 2.45 * GIGA * 32,
    "AMD EPYC 7763, product page: 64 cores, base clock 2.45 GHz, 204.8 GB/s; 32 float32 operations a cycle from two "
    "256-bit multiply-add units: AMD, Software Optimization Guide for the AMD Family 19h Processors",
)  # fmt: skip
"""One socket. Of other processors, and of one core with its share of the memory, the ratio of the two is what matters:
from 5 to 40 operations a byte."""

HARDWARE = MappingProxyType({entry.name: entry for entry in (*_ENTRIES, _CPU)})
"""What there is, by name."""
DEFAULT = HARDWARE["a100-40gb"]
"""What counts where nothing was said."""


def named(name: str, where: str) -> Hardware:
    """An entry by name.

    Raises:
        UsageError: there is none.
    """
    if name not in HARDWARE:
        raise unknown("hardware", name, HARDWARE, where)
    return HARDWARE[name]
