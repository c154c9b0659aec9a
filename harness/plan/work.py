"""An estimate of how long a step takes, without running it: what its operators compute and move.

``torch.utils.flop_counter`` counts elementwise work as zero, and that is most of what a spiking neuron does. So the
bytes that every operator reads and writes count too, and both are brought to one unit by :data:`FLOPS_PER_BYTE`. A
torch fallback counts as the kernel that it stands for (:func:`harness.ledger.kernel`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from harness.fake_ops import tensors_in
from harness.ledger import Kernel, inside

FLOPS_PER_BYTE = 12.5
"""Floating-point operations in the time of one byte to or from memory: 19.5 TFLOP/s (float32) over 1,555 GB/s of the
NVIDIA A100 40GB's data sheet. 67 over 4,800 of the H200's is 14; processors lie around 5 to 15."""
BUS = 1555 / 31.5
"""Bytes of the same device's memory in the time of one byte to or from the host: its 1,555 GB/s over the 31.5 GB/s a
direction of its PCIe 4.0 x16 (16 GT/s a lane, 128 of 130 bits: PCI-SIG, PCI Express Base Specification 4.0)."""


def crossings(host_bytes: int) -> float:
    """Time of what waits on the host, in bytes' worth: it goes there once and comes back once.

    Nothing else runs meanwhile: ``torch.autograd.graph.save_on_cpu`` copies on the stream that computes.
    """
    return 2 * BUS * host_bytes


class Work(TorchDispatchMode):
    """Adds up the work of everything that runs inside; works on fake tensors.

    >>> import torch
    >>> with Work() as work:
    ...     _ = torch.ones(4, 4) @ torch.ones(4, 4)
    >>> work.flops
    128
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.bytes = 0
        self._kernel: Kernel | None = None

    @property
    def total(self) -> float:
        """Both in bytes' worth of time."""
        return self.bytes + self.flops / FLOPS_PER_BYTE

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count it."""
        out = func(*args, **(kwargs or {}))
        kernel = inside()
        if kernel is not None:
            if kernel is not self._kernel:
                self._kernel = kernel
                self.bytes += kernel.bytes
            return out
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        if not func.is_view:
            self.bytes += sum(map(_size, tensors_in((args, kwargs, out))))
        return out


def _size(value: Tensor) -> int:
    return value.numel() * value.element_size()
