"""Braille letters read by a tactile fingertip: a small real task in time."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import NonNegativeInt
from torch import Tensor
from torch.utils.data import Dataset

from harness.contracts import DataInfo, DataSplits
from suites.datasets.integrity import Damaged, Missing, Verified
from suites.datasets.options import FileOptions
from suites.datasets.root import VARIABLE, data_root, read_file, sha256_arrays
from suites.datasets.source import FileSource
from suites.datasets.splits import stratified

STEPS, TAXELS, CLASSES = 76, 12, 27
SAMPLES = 1350
TEST_SHARE = 0.2
CONTENT_SHA256 = "b2d926a16432dd81add24237e17b61d04f377abc513dc7b689541dd6cd2d6b2f"


class BrailleOptions(FileOptions):
    """Options of :class:`Braille`.

    Attributes:
        split_seed: another one draws another fifth of each class for test.
    """

    split_seed: NonNegativeInt = 0


class Touches(Dataset[tuple[Tensor, int]]):
    """Items ``(x [76, 12] in [0, 1], y)``.

    Args:
        values: ``[n, 76, 12]`` uint8.
        labels: ``[n]``.
    """

    def __init__(self, values: Tensor, labels: list[int]) -> None:
        self.values, self.labels = values, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.values[index].float() / 255, self.labels[index]


class Braille(FileSource):
    """1,350 touches, 27 classes (letters and space) with 50 repetitions, 76 steps of 12 taxels."""

    name = "braille"
    summary = "Braille letters felt by 12 taxels in 76 steps, 27 classes"
    base = "braille_letters.npz"
    downloads = ()
    options = BrailleOptions

    def info(self) -> DataInfo:
        """See :meth:`DataSource.info`."""
        source = (
            "Braille letter reading (Mueller-Cleve et al., Frontiers in Neuroscience 2022, CC BY 4.0) as 8-bit values"
        )
        own = f"split of our own, a fifth of each class is test (seed {self.opt.split_seed})"
        variant = "; ".join(text for text in (own, self.opt.subset()) if text)
        return DataInfo((TAXELS,), CLASSES, source, variant)

    def remedy(self) -> str:
        """See :meth:`FileSource.remedy`."""
        arrays = f"x [n, {STEPS}, {TAXELS}] uint8 and y [n]"
        return f"put {self.base} with the arrays {arrays} into {data_root()}, or point ${VARIABLE} to its folder"

    def again(self) -> str:
        """See :meth:`FileSource.again`."""
        return f"move it away and {self.remedy()}; nothing was deleted"

    def places(self) -> str:
        """See :meth:`FileSource.places`."""
        return self.remedy()

    def verify(self, fresh: bool = False) -> Verified:
        """See :meth:`FileSource.verify`."""
        return self._read()[1]

    def fetch(self) -> None:
        """The recordings are published in another format: there is nothing to download."""
        self.verify()

    def load(self, steps: int) -> DataSplits:
        """See :meth:`DataSource.load`.

        Raises:
            ValueError: ``steps`` is not 76.
        """
        if steps != STEPS:
            raise ValueError(f"{self.name} has {STEPS} steps: T must be {STEPS}, not {steps}")
        arrays, found = self._read()
        split = stratified(arrays["y"], TEST_SHARE, self.opt.split_seed)
        split = {part: index[self.limited(arrays["y"][index], part)] for part, index in split.items()}
        parts = {p: Touches(torch.from_numpy(arrays["x"][i]), arrays["y"][i].tolist()) for p, i in split.items()}
        return self.splits(found, parts, split, "values / 255")

    def _read(self) -> tuple[dict[str, np.ndarray], Verified]:
        path: Path = self.path
        try:
            content = read_file(path)
        except FileNotFoundError as error:
            raise Missing(f"{self.name}: {path} is missing", self.remedy()) from error
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays: dict[str, Any] = {name: file[name] for name in ("x", "y")}
        except Exception as error:  # a flipped bit can make zipfile, zlib or numpy raise nearly anything
            raise Damaged(f"{self.name}: {path} cannot be read ({error})", self.again()) from error
        x, y = arrays["x"], arrays["y"]
        if x.shape[1:] != (STEPS, TAXELS) or x.dtype != np.uint8 or y.shape != x.shape[:1]:
            raise Damaged(f"{self.name}: {path} has x {x.dtype} {x.shape} and y {y.shape}", self.again())
        sha256 = sha256_arrays(arrays)
        reason = None if sha256 == CONTENT_SHA256 else f"another content than the known conversion ({len(x)} samples)"
        if reason is not None and not self.opt.allow_variant:
            raise Damaged(f"{self.name}: {path} has {reason}; its hash is {sha256}, expected {CONTENT_SHA256}",
                          f"accept it as a variant (allow_variant = true), or {self.again()}")  # fmt: skip
        return arrays, Verified({path.name: f"sha256:{sha256}"}, reason, len(content))
