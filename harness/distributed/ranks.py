"""The processes that share a cell: who they are, what they agree on, and the mean of their gradients.

A cell of ``g`` devices runs in ``g`` processes, its *ranks*; each has an equal part of every batch and a whole model.
The loss of a rank is the mean over its part, so the mean of the ranks' gradients is the gradient of the whole batch.

The mean is taken in ``update()``, over buckets, when a method says that its gradients are ready. That is right for every
method. ``torch.nn.parallel.DistributedDataParallel`` would take it during the backward, from hooks that expect one
forward through the wrapped module and one backward: a method that calls the stages one by one, has several backwards or
several updates a step, or writes gradients by itself breaks that. The price is that communication does not overlap with
the backward.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

GRADIENT_SYNC = "mean over ranks in update(), bucketed all-reduce, no overlap with the backward"
BUCKET_BYTES = 25 << 20
"""Gradients that are reduced at once: the default of DistributedDataParallel (``bucket_cap_mb``)."""
SEED_OFFSET = 7_919
"""Between the random numbers (dropout, augmentation) of one rank and the next; any constant that seeds avoid does."""
FOREVER = datetime.timedelta(days=30)
"""Ranks wait for one another as long as the executor lets them: when one dies, the launcher ends the others."""
GRACE = datetime.timedelta(seconds=10)
"""How long a rank that failed in a phase waits for the others to end it, too, before it gives up the cell."""

Item = TypeVar("Item")


class LostRanksError(Exception):
    """This rank failed in a phase that others are still in: they wait for it, and nothing can go on."""


@dataclass(frozen=True)
class Ranks:
    """The ranks of a cell, seen from one of them.

    Args:
        rank: this one.
        size: how many there are.
        store: where they leave notes for one another outside of collectives.
        control: the group that decisions go through: gloo, so that they touch no device.
    """

    rank: int = 0
    size: int = 1
    store: Store | None = None
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether this rank keeps the record."""
        return self.rank == 0

    def part(self, total: int) -> slice:
        """This rank's part of ``total`` things; equal parts where they divide."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def share(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """This rank's part of a batch ``(x [T, N, ...], y [N])``; storages of their own."""
        if self.size == 1:
            return batch
        x, y = batch
        part = self.part(len(y))
        return x[:, part].clone(memory_format=torch.contiguous_format), y[part].clone()

    def gather(self, value: Item) -> list[Item]:
        """Every rank's value, on every rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.control)
        return found

    def agree(self, value: Item) -> Item:
        """The first rank's value, on every rank: for decisions that depend on what was measured."""
        return self.gather(value)[0]

    def total(self, *values: float) -> tuple[float, ...]:
        """Sums over the ranks."""
        return tuple(sum(column) for column in zip(*self.gather(values), strict=True))

    def meet(self) -> None:
        """Wait until all ranks are here."""
        self.gather(None)

    def average(self, parameters: Iterable[nn.Parameter], check: bool = False) -> None:
        """Replace gradients by their mean over the ranks.

        Args:
            parameters: in the same order on all ranks; those without a gradient stay without.
            check: see first whether the ranks have gradients of the same parameters.

        Raises:
            RuntimeError: they have not.
        """
        if self.size == 1:
            return
        ready = [parameter.grad for parameter in parameters]
        if check and len(set(self.gather(tuple(gradient is not None for gradient in ready)))) > 1:
            raise RuntimeError(
                "the ranks have gradients of different parameters: the method decides by its rank's data"
            )
        for bucket in buckets([gradient for gradient in ready if gradient is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            flat /= self.size
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view(gradient.shape))
            del flat

    def end(self, phase: str, outcome: str, failed: bool) -> list[str]:
        """Tell the others how a phase ended here, and wait until it has ended everywhere.

        Goes past the process group: after a failure there, collectives no longer match.

        Args:
            phase: its name.
            outcome: how it ended on this rank.
            failed: whether by an exception; the others may then wait for this rank for ever.

        Returns:
            The outcomes of all ranks.

        Raises:
            LostRanksError: it failed here, and goes on elsewhere.
        """
        if self.store is None:
            return [outcome]
        self.store.set(f"{phase}/{self.rank}", outcome)
        keys = [f"{phase}/{rank}" for rank in range(self.size)]
        try:
            self.store.wait(keys, GRACE if failed else FOREVER)
        except RuntimeError as error:  # torch's DistStoreError
            raise LostRanksError(outcome) from error
        return [self.store.get(key).decode() for key in keys]


ALONE = Ranks()
"""A cell of one device."""


def buckets(gradients: Sequence[Tensor], limit: int = BUCKET_BYTES) -> Iterator[list[Tensor]]:
    """Gradients of one dtype that fit into ``limit`` bytes together, in order; at least one each time."""
    bucket, size = list[Tensor](), 0
    for gradient in gradients:
        if bucket and (size + gradient.nbytes > limit or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket


def backend(device: str) -> str:
    """The communication library for a device."""
    return "nccl" if device == "cuda" else "gloo"


def join(device: str) -> Ranks:
    """Meet the other ranks; called once in a process that torchrun's launcher started (it sets ``RANK`` and so on)."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=FOREVER))
    if device == "cuda":
        torch.cuda.set_device(rank)  # NCCL takes the current device for its own
    dist.init_process_group(
        backend(device), store=PrefixStore("group", store), rank=rank, world_size=size, timeout=FOREVER
    )
    control = dist.new_group(backend="gloo", timeout=FOREVER) if device == "cuda" else dist.group.WORLD
    return Ranks(rank, size, PrefixStore("phases", store), control)


def leave() -> None:
    """Part from the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()
