"""An estimate of how long a step takes, without running it: what its operators compute and move.

``torch.utils.flop_counter`` counts elementwise work as zero, and that is most of what a spiking neuron does. So the
bytes that every operator reads and writes count too, and both are brought to one unit by a device's rates
(:mod:`harness.plan.hardware`). Where the device has kernels, a torch fallback counts as the kernel that it stands for
(:func:`harness.ledger.kernel`).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from harness.fake_ops import tensors_in
from harness.ledger import Kernel, inside
from harness.plan.hardware import DEFAULT, Hardware

_ATEN = torch.ops.aten
STILL = frozenset({
    _ATEN.empty, _ATEN.empty_like, _ATEN.empty_strided, _ATEN.new_empty, _ATEN.new_empty_strided, _ATEN._unsafe_view,
    torch.ops.prim.device,
})  # fmt: skip
"""Operators that neither read nor write a value: a tensor without contents, a view whose schema does not say so, and the
question for a fake tensor's device."""


class Work(TorchDispatchMode):
    """Adds up the work of everything that runs inside; works on fake tensors.

    Args:
        hardware: what it is weighed as.
        tf32: float32 products use TF32 where the hardware has it.

    >>> import torch
    >>> with Work() as work:
    ...     _ = torch.ones(4, 4) @ torch.ones(4, 4)
    >>> work.flops
    128
    """

    def __init__(self, hardware: Hardware = DEFAULT, tf32: bool = False) -> None:
        super().__init__()
        self.hardware, self.tf32 = hardware, tf32
        self.bytes = 0
        self._flops: dict[torch.dtype, int] = defaultdict(int)
        self._kernel: Kernel | None = None

    @property
    def flops(self) -> int:
        """Operations of products, whatever their dtype."""
        return sum(self._flops.values())

    def total(self, host_bytes: int = 0) -> float:
        """All of it, in the bytes that the hardware's memory moves meanwhile.

        Args:
            host_bytes: what waits in the host's memory: it goes there once and comes back once, while nothing else runs
                (``torch.autograd.graph.save_on_cpu`` copies on the stream that computes). Where that memory is the
                device's own, its copies are among the operators.
        """
        here = self.hardware
        seconds = sum(flops / here.flops(dtype, self.tf32) for dtype, flops in self._flops.items())
        if here.bus is not None:
            seconds += 2 * host_bytes / here.bus.bytes_per_s
        return self.bytes + here.bytes_per_s * seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count it."""
        out = func(*args, **(kwargs or {}))
        kernel = inside() if self.hardware.kernels else None
        if kernel is not None:
            if kernel is not self._kernel:
                self._kernel = kernel
                self.bytes += kernel.bytes
            return out
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self._flops[_dtype(args)] += formula(*args, **(kwargs or {}), out_val=out)
        if not func.is_view and func._overloadpacket not in STILL:
            self.bytes += sum(map(_size, tensors_in((args, _read(kwargs), out))))
        return out


def _dtype(args: Any) -> torch.dtype:
    """What a product's operands are."""
    return next(tensor.dtype for tensor in tensors_in(args) if tensor.is_floating_point())


def _read(kwargs: Any) -> Any:
    """Keyword arguments without ``out``, which is written and counts as the result."""
    return {name: value for name, value in (kwargs or {}).items() if name != "out"}


def _size(value: Tensor) -> int:
    """Bytes of the elements that there are in memory: a dimension that was expanded is read from the cache."""
    size = value.element_size()
    for length, stride in zip(value.shape, value.stride(), strict=True):
        size *= length if stride or not length else 1
    return size
