"""scikit-learn's digits and their fixed split, shared by the frame and the event version."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from harness.contracts import Options, Unavailable
from suites.datasets.cache import Arrays, cached
from suites.datasets.root import sha256_arrays
from suites.datasets.splits import hashed_order

CLASSES = 10
SIZE = 8
GREY_LEVELS = 16.0  # pixel values are counts 0..16 (scikit-learn, load_digits)
SOURCE = "scikit-learn load_digits: test set of UCI optdigits (Alpaydin and Kaynak, 1998), 1,797 images of 8x8"

SPLIT_SEED = 0
TEST_PARTS = 5  # a fifth of every class is test data
N_TRAIN, N_TEST = 1438, 359  # what that makes


class LimitOptions(Options):
    """Use a part of the data.

    Attributes:
        n_train: number of training samples, or all of them.
        n_test: number of test samples, or all of them.
    """

    n_train: PositiveInt | None = Field(None, le=N_TRAIN)
    n_test: PositiveInt | None = Field(None, le=N_TEST)

    def variant(self) -> str | None:
        """Why this is not the whole data set, or None."""
        limits = {name: value for name in ("n_train", "n_test") if (value := getattr(self, name)) is not None}
        return "; ".join(f"first {value} of {name[2:]}" for name, value in limits.items()) or None

    def limit(self, split: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The indices in use."""
        return {"train": split["train"][: self.n_train], "test": split["test"][: self.n_test]}


@cache
def load_images() -> tuple[np.ndarray, np.ndarray]:
    """Images ``[1797, 8, 8]`` float32 in [0, 1] and labels ``[1797]`` int64; read-only.

    They are part of scikit-learn, but importing that takes a second or more, and every cell runs in a fresh process:
    hence a copy in the data folder.
    """
    try:
        arrays = cached("digits", "images.npz", {}, _from_sklearn).arrays
    except Unavailable:  # no folder to keep a copy in: slower, but the data are here
        arrays = _from_sklearn()
    for array in arrays.values():
        array.flags.writeable = False
    return arrays["images"], arrays["labels"]


def _from_sklearn() -> Arrays:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return {
        "images": (pixels.reshape(-1, SIZE, SIZE) / GREY_LEVELS).astype(np.float32),
        "labels": labels.astype(np.int64),
    }


def split_indices(labels: np.ndarray, seed: int = SPLIT_SEED) -> dict[str, np.ndarray]:
    """Stratified split by hash, the same on every machine and with every library version.

    The first fifth of each class (rounded) in one hashed order is test data. Both parts come in another hashed order,
    so that their beginnings mix the classes.

    Args:
        labels: ``[n]``.
        seed: another one gives another split.

    Returns:
        Indices of ``train`` and ``test``.
    """
    draw, order = (hashed_order(len(labels), f"{seed}:{purpose}") for purpose in ("draw", "order"))
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        of_class = draw[labels[draw] == label]
        is_test[of_class[: round(len(of_class) / TEST_PARTS)]] = True
    return {"train": order[~is_test[order]], "test": order[is_test[order]]}


def split_details(split: dict[str, np.ndarray]) -> dict[str, Any]:
    """Facts about a split for the record."""
    counts = {f"{name}_samples": len(indices) for name, indices in split.items()}
    return {"split_seed": SPLIT_SEED, "split_sha256": sha256_arrays(split), **counts}
