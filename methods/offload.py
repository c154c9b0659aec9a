"""Offload: what autograd saves goes to the host in the forward and comes back in the backward.

The graph is BPTT's, and the backward runs the same operators on copies of the same numbers, so the gradient is equal to
the bit. On CUDA this is ``torch.autograd.graph.save_on_cpu`` as a practitioner would switch it on: every saved tensor is
copied when it is saved, parameters and what several operators save too, and copied back when it is needed.

On a CPU ``save_on_cpu`` does nothing, since ``tensor.cpu()`` is the tensor itself. There it is **emulated on CPU**: saved
tensors are copied into a pool that plays the host (the ledger counts it as ``host_bytes``), and cloned from there. The
pool is kinder than ``save_on_cpu`` in two ways: parameters and buffers, which live on the device anyway, are not copied,
and what several operators save is copied once. Its device peak is what a good offload would leave on a device; its time
is that of copies in memory and says nothing about a bus.

Stored on the device: what autograd does not save, and one layer's saved tensors while it runs backward. Stored on the
host: the rest; it grows with ``T`` as BPTT does. On CUDA the process's ``host_peak_bytes`` shows it alone; on a CPU it shows
it together with the device's.

Needs from the model: nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.weak import WeakIdKeyDictionary

from harness import ledger
from harness.contracts import Loss, Method, Options, StagedModel, StepOutput


class OffloadOptions(Options):
    """Options of :class:`Offload`.

    Attributes:
        pin_memory: page-locked host memory, which a GPU copies to and from faster; on a CPU it means nothing.
    """

    pin_memory: bool = True


class Copy:
    """A saved tensor on the host; it lives as long as a graph holds it."""

    def __init__(self, tensor: Tensor) -> None:
        with torch.no_grad(), ledger.host():
            self.tensor = tensor.clone()


class HostPool:
    """Copies of saved tensors, for ``saved_tensors_hooks``.

    A copy is found again by storage, version and view. Storages are told apart by weak reference: addresses are reused,
    and a copy found by address alone would be another tensor's.

    Args:
        resident: tensors that stay where they are.
    """

    def __init__(self, resident: Iterable[Tensor]) -> None:
        self._resident = WeakIdKeyDictionary({tensor.untyped_storage(): True for tensor in resident})
        self._copies = WeakIdKeyDictionary()
        self.copied_bytes = 0

    def pack(self, tensor: Tensor) -> Copy | Tensor:
        """The host's copy of a tensor that autograd saves."""
        storage = tensor.untyped_storage()
        if storage in self._resident:
            return tensor
        views = self._copies.setdefault(storage, weakref.WeakValueDictionary())
        view = tensor._version, tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride()
        copy = views.get(view)
        if copy is None:
            copy = views[view] = Copy(tensor)
            self.copied_bytes += copy.tensor.untyped_storage().nbytes()
        return copy

    def unpack(self, kept: Copy | Tensor) -> Tensor:
        """The tensor on the device again."""
        return kept.tensor.clone() if isinstance(kept, Copy) else kept


class Offload(Method):
    """BPTT whose saved tensors wait on the host."""

    name = "offload"
    summary = "saved tensors wait in the host's memory (torch.autograd.graph.save_on_cpu; emulated on a CPU)"
    paper = "-"
    gradient = "exact"
    options: ClassVar[type[OffloadOptions]] = OffloadOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._plan: dict[str, Any] = {}

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """See :meth:`Method.step`."""
        if x.device.type == "cpu":
            pool = HostPool([*model.parameters(), *model.buffers()])
            hooks = saved_tensors_hooks(pool.pack, pool.unpack)
        else:
            hooks = _named(save_on_cpu(pin_memory=self.opt.pin_memory))
        with hooks:
            logits = model(x)
            value = loss(logits, y)
        if x.device.type == "cpu":
            self._plan = {"host": "emulated on CPU", "host_bytes": pool.copied_bytes}
        else:
            pinned = ", pinned" if self.opt.pin_memory else ""
            self._plan = {"host": f"torch.autograd.graph.save_on_cpu{pinned}"}
        loss.backward(value)
        update()
        return StepOutput(value.detach(), logits.detach().mean(0))

    def plan(self) -> dict[str, Any]:
        """What played the ``host``, and where it was emulated the ``host_bytes`` of a step; empty before the first."""
        return self._plan


def _named(hooks: saved_tensors_hooks) -> saved_tensors_hooks:
    """The same hooks, their copies named to the ledger."""
    pack = hooks.pack_hook

    def named(tensor: Tensor) -> Any:
        with ledger.host():
            return pack(tensor)

    hooks.pack_hook = named
    return hooks
