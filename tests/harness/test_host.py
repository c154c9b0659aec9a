"""Host peak: real allocations of this process."""

from __future__ import annotations

import numpy as np
import pytest

from harness import host
from harness.host import HostPeak

MIB = 1 << 20


@pytest.mark.parametrize("size", [32, 128])
def test_a_freed_block_still_shows(size: int) -> None:
    with HostPeak() as peak:
        block = np.ones(size * MIB, dtype=np.uint8)
        del block
    assert peak.bytes is not None
    assert size * MIB * 0.95 <= peak.bytes <= size * MIB * 1.1 + 8 * MIB


def test_an_earlier_peak_does_not_count() -> None:
    np.ones(256 * MIB, dtype=np.uint8)
    with HostPeak() as peak:
        np.ones(16 * MIB, dtype=np.uint8)
    assert peak.bytes is not None
    assert peak.bytes < 64 * MIB


def test_a_system_without_it_says_why(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_CLEAR", tmp_path / "nowhere" / "clear_refs")
    with HostPeak() as peak:
        pass
    assert peak.bytes is None
    assert "cannot be reset" in (peak.reason or "")


def test_memory_freed_earlier_does_not_hide_a_rise() -> None:
    """Regression: blocks of the heap were taken from pages that an earlier step had freed, and the peak did not rise."""
    np.ones(32 * MIB, dtype=np.uint8)  # once a block of this size was freed, glibc takes smaller ones from its heap
    earlier = [np.ones(4 * MIB, dtype=np.uint8) for _ in range(64)]
    last = np.ones(4 * MIB, dtype=np.uint8)  # while the heap's end is in use, glibc keeps what is freed below it
    del earlier
    with HostPeak() as peak:
        blocks = [np.ones(4 * MIB, dtype=np.uint8) for _ in range(64)]
    assert peak.bytes is not None
    assert peak.bytes >= 0.95 * sum(block.nbytes for block in blocks)
    assert last.all()
