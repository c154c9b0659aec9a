"""Handwritten digits as events: scikit-learn's digits seen by a simulated event camera."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from harness.contracts import DataInfo, DataSource, DataSplits
from suites.datasets.cache import Arrays, Cached, cached
from suites.datasets.digit_source import CLASSES, SOURCE, LimitOptions, load_images, split_details, split_indices
from suites.datasets.saccades import SENSOR, Recordings, record, saccade_path
from suites.torchvision_shim import ensure_torchvision

FOLDER = "digit-events"
GENERATOR = 1  # to be raised whenever the events would come out differently
POLARITIES = 2  # channel 0 counts OFF events, channel 1 ON events


class DigitEventsOptions(LimitOptions):
    """Options of :class:`DigitEvents`."""


class EventFrames(Dataset[tuple[Tensor, int]]):
    """Items ``(x [T, 2, H, W] float32, y)``; values are numbers of events.

    Args:
        frames: ``[n, T, 2, H, W]`` uint8, kept as they are.
        labels: ``[n]``.
    """

    def __init__(self, frames: Tensor, labels: list[int]) -> None:
        self.frames, self.labels = frames, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.frames[index].float(), self.labels[index]


class DigitEvents(DataSource):
    """1,797 recordings of about 720 events on 16x16 pixels in 300 ms, with the split of ``digits``.

    Events and frames are cached below the data folder; tonic is needed to make frames only.
    """

    name = "digit-events"
    summary = "scikit-learn's digits moved by three saccades in front of a simulated event camera, 16x16"
    options: ClassVar[type[DigitEventsOptions]] = DigitEventsOptions

    def info(self) -> DataInfo:
        """See :meth:`DataSource.info`."""
        limits = self.opt.variant()
        variant = "simulated events, no recording" + (f"; {limits}" if limits else "")
        source = f"events simulated here (suites/datasets/saccades.py, version {GENERATOR}) from {SOURCE}"
        return DataInfo((POLARITIES, SENSOR, SENSOR), CLASSES, source, variant)

    def prepare(self, steps: int) -> None:
        """Make the events and the frames of ``steps`` time bins, or verify those on disk.

        Raises:
            Unavailable: the data folder cannot be written to.
        """
        load_frames(steps)

    def load(self, steps: int) -> DataSplits:
        """See :meth:`DataSource.load`; what is missing or damaged is made anew.

        Raises:
            Unavailable: the data folder cannot be written to.
        """
        content = load_frames(steps)
        frames, labels = torch.from_numpy(content.arrays["frames"]), content.arrays["labels"]
        split = self.opt.limit(split_indices(labels))
        train, test = (EventFrames(frames[torch.from_numpy(i)], labels[i].tolist()) for i in split.values())
        details: dict[str, Any] = {"generator": GENERATOR, "events_sha256": str(content.arrays["events_sha256"])}
        return DataSplits(train, test, content.sha256, split_details(split) | details)


def load_events() -> Cached:
    """Events of all recordings (fields of :class:`Recordings`) and ``labels``, from the cache or made now.

    Raises:
        Unavailable: the data folder cannot be written to.
    """
    return cached(FOLDER, f"events-v{GENERATOR}.npz", {"generator": GENERATOR}, _make_events)


def load_frames(steps: int) -> Cached:
    """``frames`` ``[1797, steps, 2, 16, 16]`` uint8, ``labels`` and ``events_sha256``, from the cache or made now.

    Raises:
        Unavailable: the data folder cannot be written to.
    """
    tonic = version("tonic")  # it makes the frames; its version is part of the name, so that two may share a folder
    expected = {"generator": GENERATOR, "T": steps, "tonic": tonic}
    name = f"frames-v{GENERATOR}-T{steps}-tonic{tonic}.npz"
    return cached(FOLDER, name, expected, lambda: _make_frames(steps))


def structured(recordings: Recordings, index: int) -> np.ndarray:
    """One recording as tonic's structured array with fields x, y, t, p; ``[events]``."""
    ensure_torchvision()
    from tonic.io import make_structured_array

    part = slice(*recordings.offsets[index : index + 2])
    return np.asarray(make_structured_array(*(field[part] for field in _fields(recordings))))


def to_frames(recordings: Recordings, steps: int) -> np.ndarray:
    """Numbers of events in ``steps`` equal time bins, made with tonic; ``[recordings, steps, 2, 16, 16]`` uint8.

    A recording without events gives zeros. tonic's bins reach from the first event to the last, which it leaves out.
    """
    ensure_torchvision()
    from tonic.transforms import ToFrame

    transform = ToFrame(sensor_size=(SENSOR, SENSOR, POLARITIES), n_time_bins=steps)
    count = len(recordings.offsets) - 1
    frames = np.zeros((count, steps, POLARITIES, SENSOR, SENSOR), dtype=np.uint8)
    for index in range(count):
        events = structured(recordings, index)
        if len(events):
            frames[index] = np.minimum(transform(events), np.iinfo(np.uint8).max)
    return frames


def _fields(recordings: Recordings) -> tuple[np.ndarray, ...]:
    return recordings.x, recordings.y, recordings.t, recordings.p


def _make_events() -> Arrays:
    images, labels = load_images()
    return vars(record(images, *saccade_path())) | {"labels": labels}


def _make_frames(steps: int) -> Arrays:
    events = load_events()
    arrays = dict(events.arrays)
    labels = arrays.pop("labels")
    frames = to_frames(Recordings(**arrays), steps)
    return {"frames": frames, "labels": labels, "events_sha256": np.array(events.sha256)}
