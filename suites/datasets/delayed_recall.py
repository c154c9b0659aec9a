"""Delayed recall: a task whose answer is spread over time, generated from a rule.

A symbol is shown in the first ``shown`` steps and another in the last ``shown`` steps, on the same channels; distractor
channels spike at random all the time. The class says how far apart they are::

    y = (first - second) mod K        x[t, first] = 1 for t < shown,   x[t, second] = 1 for t >= T - shown

All ``K^2`` pairs are equally frequent. So the first symbol has to be carried through the delay, and

* what a single step shows says nothing about the class: a reader without memory is right in ``1 / K`` of the samples;
* the two orders of a pair have the same spike counts but opposite classes: a reader of counts, which is all that the
  mean over time keeps, is right at most in ``(K + 1) / 2K`` of the samples for odd ``K`` (two thirds for ``K = 3``).

A per-step loss asks for the class at every step; before the second symbol nothing better than ``log K`` can be reached,
and the mean of the logits over time is decided in the last ``shown`` steps. It is of the family of the adding problem
(Hochreiter and Schmidhuber, 1997), made such that feed-forward spiking networks learn it in seconds.
"""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.data import Dataset

from harness.contracts import DataInfo, DataSource, DataSplits, Options
from suites.datasets.root import sha256_arrays

GENERATOR = 1  # to be raised whenever the samples would come out differently
DRAW = np.dtype("<u2")  # a distractor's random number
DRAWS = 1 << 16


class DelayedRecallOptions(Options):
    """Options of :class:`DelayedRecall`.

    Attributes:
        symbols: number of symbols ``K``, and of classes.
        shown: steps that each of the two symbols is shown for.
        channels: input channels of one symbol; all of them spike in every step that shows it.
        distractors: channels of noise.
        rate: probability that a distractor spikes in a step, in units of 1 / 65,536.
        n_train: number of training samples.
        n_test: number of test samples.
        data_seed: seed of the noise.
    """

    symbols: int = Field(3, ge=2, le=16)
    shown: PositiveInt = 10
    channels: PositiveInt = 4
    distractors: NonNegativeInt = 8
    rate: float = Field(0.1, ge=0.0, le=1.0)
    n_train: PositiveInt = 1800
    n_test: PositiveInt = 450
    data_seed: NonNegativeInt = 0


class Sequences(Dataset[tuple[Tensor, int]]):
    """Items ``(x [T, C] float32, y)``.

    Args:
        spikes: ``[n, T, C]`` uint8, kept as they are.
        labels: ``[n]``.
    """

    def __init__(self, spikes: Tensor, labels: list[int]) -> None:
        self.spikes, self.labels = spikes, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.spikes[index].float(), self.labels[index]


class DelayedRecall(DataSource):
    """1,800 sequences for training and 450 for test, the same on every machine; nothing is kept on disk."""

    name = "delayed-recall"
    summary = "generated: recall a symbol from the first steps when another is shown in the last"
    options: ClassVar[type[DelayedRecallOptions]] = DelayedRecallOptions

    def info(self) -> DataInfo:
        """See :meth:`DataSource.info`."""
        opt: DelayedRecallOptions = self.opt
        source = f"generated from a rule (suites/datasets/delayed_recall.py, version {GENERATOR})"
        channels = opt.symbols * opt.channels + opt.distractors
        return DataInfo((channels,), opt.symbols, source, "a task of our own: there are no published numbers for it")

    def load(self, steps: int) -> DataSplits:
        """See :meth:`DataSource.load`.

        Raises:
            ValueError: the two symbols would overlap.
        """
        opt: DelayedRecallOptions = self.opt
        if steps < 2 * opt.shown:
            raise ValueError(f"delayed-recall: two symbols of {opt.shown} steps need T >= {2 * opt.shown}, not {steps}")
        arrays = {}
        for part, count in (("train", opt.n_train), ("test", opt.n_test)):
            arrays[f"{part}_spikes"], arrays[f"{part}_labels"] = generate(opt, steps, part, count)
        train, test = (
            Sequences(torch.from_numpy(arrays[f"{part}_spikes"]), arrays[f"{part}_labels"].tolist())
            for part in ("train", "test")
        )
        details: dict[str, Any] = {"generator": GENERATOR, "delay": steps - 2 * opt.shown}
        return DataSplits(train, test, sha256_arrays(arrays), details)


def generate(options: DelayedRecallOptions, steps: int, part: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Spikes ``[count, steps, C]`` uint8 and labels ``[count]`` int64.

    The noise comes from a hash of the sample's place, so that no library's version moves it.

    Args:
        options: the task.
        steps: ``T``.
        part: ``train`` or ``test``.
        count: number of samples; a multiple of ``K^2`` holds all pairs equally often.
    """
    first, second = np.divmod(np.arange(count) % options.symbols**2, options.symbols)
    size = options.symbols * options.channels
    spikes = np.zeros((count, steps, size + options.distractors), dtype=np.uint8)
    symbols = spikes[:, :, :size].reshape(count, steps, options.symbols, options.channels)
    rows = np.arange(count)
    symbols[rows, : options.shown, first] = 1
    symbols[rows, steps - options.shown :, second] = 1
    spikes[:, :, :size] = symbols.reshape(count, steps, size)
    for index in range(count):
        spikes[index, :, size:] = _noise(options, steps, f"{GENERATOR}:{options.data_seed}:{part}:{index}")
    return spikes, (first - second) % options.symbols


def _noise(options: DelayedRecallOptions, steps: int, key: str) -> np.ndarray:
    """Spikes of the distractors ``[steps, distractors]``."""
    shape = (steps, options.distractors)
    stream = hashlib.shake_256(key.encode()).digest(steps * options.distractors * DRAW.itemsize)
    return np.frombuffer(stream, DRAW).reshape(shape) < round(options.rate * DRAWS)
