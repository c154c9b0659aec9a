"""A model of torch's CUDA caching allocator: what the ledger's storages would cost there.

Source: ``c10/cuda/CUDACachingAllocator.cpp`` and ``c10/core/AllocatorConfig.h`` of torch 2.11 to 2.13, with the default
configuration, one stream and memory enough. Sizes are rounded up to 512 bytes. Requests up to 1 MiB are cut from
segments of 2 MiB, larger ones up to 10 MiB from segments of 20 MiB, beyond that a segment is the size rounded up to
2 MiB. The smallest free block that fits is taken, and cut where what is left is worth it: 512 bytes among small ones,
more than 1 MiB among large ones. What is not cut off counts as allocated: that is how a peak of the allocator exceeds
the ledger's.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field

MIN_BLOCK = 512
"""``kMinBlockSize``."""
SMALL_SIZE, SMALL_SEGMENT = 1 << 20, 2 << 20
"""``kSmallSize``, ``kSmallBuffer``."""
MIN_LARGE, LARGE_SEGMENT, ROUND_LARGE = 10 << 20, 20 << 20, 2 << 20
"""``kMinLargeAlloc``, ``large_segment_size``, ``kRoundLarge``."""


def rounded(size: int) -> int:
    """Bytes of the block that a request asks for."""
    return max(MIN_BLOCK, -(-size // MIN_BLOCK) * MIN_BLOCK)


def segment_size(size: int) -> int:
    """Bytes of the segment that is got from CUDA where no free block holds a rounded ``size``."""
    if size <= SMALL_SIZE:
        return SMALL_SEGMENT
    return LARGE_SEGMENT if size < MIN_LARGE else -(-size // ROUND_LARGE) * ROUND_LARGE


@dataclass
class Block:
    """A piece of a segment.

    Args:
        address: unique; segments do not touch.
        size: bytes.
        small: which pool it belongs to.
        free: nobody uses it.
        before: its neighbour in the segment.
        after: likewise.
    """

    address: int
    size: int
    small: bool
    free: bool = False
    before: Block | None = field(default=None, repr=False)
    after: Block | None = field(default=None, repr=False)


class CachingAllocator:
    """Counts as the allocator does; ``allocated`` and ``reserved`` are bytes now, the others their peaks.

    >>> allocator = CachingAllocator()
    >>> block = allocator.malloc(3 << 20)
    >>> allocator.allocated == 3 << 20, allocator.reserved == 20 << 20
    (True, True)
    """

    def __init__(self) -> None:
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self._pools: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._at: dict[int, Block] = {}
        self._top = 0

    def malloc(self, size: int) -> Block:
        """A block of at least ``size`` bytes."""
        size = rounded(size)
        small = size <= SMALL_SIZE
        block = self._smallest(size, small) or self._segment(size, small)
        left = block.size - size
        if left >= MIN_BLOCK if small else left > SMALL_SIZE:
            self._cut(block, size)
        block.free = False
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def free(self, block: Block) -> None:
        """Give a block back: it joins its free neighbours and stays reserved."""
        self.allocated -= block.size
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                self._take(neighbour)
                self._join(block, neighbour)
        block.free = True
        self._at[block.address] = block
        bisect.insort(self._pools[block.small], (block.size, block.address))

    def _smallest(self, size: int, small: bool) -> Block | None:
        pool = self._pools[small]
        place = bisect.bisect_left(pool, (size, -1))
        if place == len(pool):
            return None
        return self._at.pop(pool.pop(place)[1])

    def _segment(self, size: int, small: bool) -> Block:
        block = Block(self._top, segment_size(size), small)
        self._top += block.size + MIN_BLOCK
        self.reserved += block.size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return block

    def _cut(self, block: Block, size: int) -> None:
        rest = Block(block.address + size, block.size - size, block.small, True, block, block.after)
        if block.after is not None:
            block.after.before = rest
        block.after, block.size = rest, size
        self._at[rest.address] = rest
        bisect.insort(self._pools[rest.small], (rest.size, rest.address))

    def _take(self, block: Block) -> None:
        pool = self._pools[block.small]
        pool.pop(bisect.bisect_left(pool, (block.size, block.address)))
        del self._at[block.address]

    def _join(self, block: Block, neighbour: Block) -> None:
        block.size += neighbour.size
        if neighbour is block.before:
            block.address, block.before = neighbour.address, neighbour.before
            if block.before is not None:
                block.before.after = block
        else:
            block.after = neighbour.after
            if block.after is not None:
                block.after.before = block


def replay(lives: Iterable[tuple[int, int, int | None]]) -> CachingAllocator:
    """The allocator after the given storages have lived in it.

    Args:
        lives: ``(bytes, born, died)`` with times in events, ``died`` None for those that outlive the rest; as
            :attr:`harness.ledger.LedgerReport.lives` has them. Empty storages take nothing.
    """
    lives = list(lives)
    events = [(born, 1, index) for index, (size, born, _) in enumerate(lives) if size]
    events += [(died, 0, index) for index, (size, _, died) in enumerate(lives) if size and died is not None]
    allocator, blocks = CachingAllocator(), dict[int, Block]()
    for _, born, index in sorted(events):
        if born:
            blocks[index] = allocator.malloc(lives[index][0])
        else:
            allocator.free(blocks.pop(index))
    return allocator
