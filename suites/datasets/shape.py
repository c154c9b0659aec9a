"""Synthetic input of a declared shape: for memory and time where the data are absent, never for accuracy."""

from __future__ import annotations

import hashlib
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.data import Dataset

from harness.contracts import DataInfo, DataSource, DataSplits, Options


class ShapeOptions(Options):
    """Options of :class:`Shape`.

    Attributes:
        sample: shape of one time step of one sample, ``[C, H, W]``.
        classes: number of classes.
        values: ``uniform`` in (0, 1), as images are, or ``spikes``, 0 and 1.
        density: fraction of entries that are not zero.
        static: the same frame at every step, as for direct encoding.
        n_train: number of training samples.
        n_test: number of test samples.
        data_seed: seed of the values.
    """

    sample: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    classes: PositiveInt
    values: Literal["uniform", "spikes"] = "uniform"
    density: float = Field(1.0, gt=0.0, le=1.0)
    static: bool = False
    n_train: PositiveInt = 256
    n_test: PositiveInt = 64
    data_seed: NonNegativeInt = 0


class Noise(Dataset[tuple[Tensor, int]]):
    """Items ``(x [T, *sample], y)`` drawn from a seed of their own, so that none is kept.

    Args:
        options: shape and values.
        steps: ``T``.
        first: index of the first item, so that splits differ.
        count: number of items.
    """

    def __init__(self, options: ShapeOptions, steps: int, first: int, count: int) -> None:
        self.opt, self.steps, self.first, self.count = options, steps, first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        digest = hashlib.sha256(f"{self.opt.data_seed}:{self.first + index}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        shape = (1 if self.opt.static else self.steps, *self.opt.sample)
        keep = torch.rand(shape, generator=generator) < self.opt.density
        x = keep.float() if self.opt.values == "spikes" else keep * torch.rand(shape, generator=generator)
        return x.expand(self.steps, *self.opt.sample), (self.first + index) % self.opt.classes


class Shape(DataSource):
    """Noise of a declared shape with labels that mean nothing."""

    name = "shape"
    summary = "synthetic input of a declared shape, for memory and time without the data"
    options: ClassVar[type[ShapeOptions]] = ShapeOptions

    def __init__(self, options: Options | None = None) -> None:
        if options is None:
            raise ValueError("the data set 'shape' needs the options sample, e.g. [3, 224, 224], and classes")
        super().__init__(options)

    def info(self) -> DataInfo:
        """See :meth:`DataSource.info`; the source says that the data are synthetic."""
        opt: ShapeOptions = self.opt
        variant = "synthetic input: memory and time only, accuracy means nothing"
        return DataInfo(opt.sample, opt.classes, f"synthetic {opt.values} noise", variant, opt.static)

    def load(self, steps: int) -> DataSplits:
        """See :meth:`DataSource.load`; ``details`` has ``synthetic: true``."""
        opt: ShapeOptions = self.opt
        train, test = Noise(opt, steps, 0, opt.n_train), Noise(opt, steps, opt.n_train, opt.n_test)
        sha256 = hashlib.sha256(opt.model_dump_json().encode()).hexdigest()
        return DataSplits(train, test, sha256, {"synthetic": True, "sha256_of": "the options, which fix the values"})
