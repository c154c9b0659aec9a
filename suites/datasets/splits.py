"""Which samples are train and test: by hash, the same on every machine and with every library version."""

from __future__ import annotations

import hashlib

import numpy as np


def hashed_order(count: int, key: str) -> np.ndarray:
    """The numbers below ``count`` in an order that follows from ``key``."""
    return np.array(sorted(range(count), key=lambda i: hashlib.sha256(f"{key}:{i}".encode()).digest()), dtype=np.int64)


def stratified(labels: np.ndarray, test_share: float, seed: int) -> dict[str, np.ndarray]:
    """Indices of ``train`` and ``test``, rising; ``test`` has the same share of every class, rounded.

    Args:
        labels: ``[n]``.
        test_share: between 0 and 1.
        seed: another one gives another split.
    """
    draw = hashed_order(len(labels), f"{seed}:draw")
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        of_class = draw[labels[draw] == label]
        is_test[of_class[: round(len(of_class) * test_share)]] = True
    return {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}


def take(labels: np.ndarray, count: int | None, seed: int) -> np.ndarray:
    """Indices of ``count`` samples in which the classes take turns, or of all.

    Args:
        labels: ``[n]``.
        count: how many; None or more than there are: all, in their order.
        seed: another one takes others.
    """
    if count is None or count >= len(labels):
        return np.arange(len(labels))
    order = hashed_order(len(labels), f"{seed}:subset")
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        turn[of_class] = np.arange(len(of_class))
    # Sorted by turn, then by hash: within a turn the classes come in no fixed order.
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return np.lexsort((rank, turn))[:count]
