"""Frames of event recordings: made by tonic, one verified file each on disk, some kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from harness.contracts import Unavailable
from suites.datasets.augment import Transform
from suites.datasets.cache import DamagedError, read_cache, write_cache
from suites.datasets.root import data_root, make_folder, set_aside
from suites.torchvision_shim import ensure_torchvision

KEPT_BYTES = 1 << 30
"""Frames of a split that stay in memory, in bytes: small sets are read from disk once a process."""
COUNTS = np.uint8
"""Events per pixel, polarity and frame; more than 255 count as 255."""


@dataclass(frozen=True)
class Framing:
    """How events become frames; everything that the frames depend on besides the recordings.

    Args:
        steps: number of frames ``T``.
        sensor: the camera's width, height and polarities; height 1 for a line of channels.
        size: width and height of the frames.
        split_by: ``number``: equally many events a frame; ``time``: equally long; ``window``: equally long from 0 to
            ``window_us``.
        window_us: microseconds that all frames cover together, for ``window``.
    """

    steps: int
    sensor: tuple[int, int, int]
    size: tuple[int, int]
    split_by: str
    window_us: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the frames of one recording ``[T, P, H, W]``."""
        return (self.steps, self.sensor[2], self.size[1], self.size[0])

    def __call__(self, events: np.ndarray) -> np.ndarray:
        """Numbers of events ``[T, P, H, W]`` uint8; a recording without events gives zeros.

        tonic's bins leave out what is left over at the end: the last event (``time``), or fewer than T of them
        (``number``).
        """
        ensure_torchvision()
        from tonic.transforms import Downsample, ToFrame

        frames = np.zeros(self.shape, dtype=COUNTS)
        if len(events) == 0:
            return frames
        if self.size != self.sensor[:2]:
            events = Downsample(sensor_size=self.sensor, target_size=self.size)(events)
        sliced = ToFrame(sensor_size=(*self.size, self.sensor[2]), **self._slicing())(events)[: self.steps]
        found = np.minimum(sliced, np.iinfo(COUNTS).max).astype(COUNTS)
        frames[: len(found)] = found.reshape(-1, *self.shape[1:])
        return frames

    def _slicing(self) -> dict[str, Any]:
        if self.split_by == "number":
            return {"n_event_bins": self.steps}
        if self.split_by == "time":
            return {"n_time_bins": self.steps}
        assert self.window_us is not None
        window = {"start_time": 0, "end_time": self.window_us, "include_incomplete": True}
        return {"time_window": self.window_us / self.steps, **window}


Make = Callable[[str, int], np.ndarray]
"""Frames of a recording, from the name of its pool and its place there."""


class FrameStore:
    """One file per recording below ``cache/`` in the data root, whose name tells what made it.

    Each file holds its content's hash and is verified when it is read; what is damaged is set aside and made again.
    Processes that get to a file at the same time make the same content, and the last rename wins. tonic's own disk
    cache writes in place, hands out what it can still read of a truncated file, and draws from numpy's generator.

    Args:
        folder: below the data root; its name has the hash of the framing and of the recordings.
        make: makes what is not there.
    """

    def __init__(self, folder: tuple[str, ...], make: Make) -> None:
        self.folder, self.make = folder, make

    def get(self, pool: str, index: int) -> np.ndarray:
        """Frames ``[T, P, H, W]`` uint8 of one recording.

        Raises:
            Unavailable: its frames are not here and cannot be made.
        """
        path = data_root().joinpath(*self.folder) / f"{pool}-{index:06d}.npz"
        expected = {"pool": pool, "index": index}
        try:
            return read_cache(path, expected).arrays["frames"]
        except FileNotFoundError:
            pass
        except (DamagedError, KeyError) as error:
            set_aside(path, str(error))
        frames = self.make(pool, index)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_cache(path, {"frames": frames}, expected, durable=False)
        except (Unavailable, OSError):  # no room for a cache: made again every time
            pass
        return frames

    def fill(self, pool: str, indices: Sequence[int]) -> None:
        """Make what is not there.

        Raises:
            Unavailable: the data folder cannot be written to, or a recording cannot be read.
        """
        folder = make_folder(*self.folder)
        here = {path.name for path in folder.iterdir()}
        for index in indices:
            if f"{pool}-{index:06d}.npz" not in here:
                self.get(pool, index)


class EventFrames(Dataset[tuple[Tensor, int]]):
    """Items ``(x [T, ...] float32, y)``; values are numbers of events.

    Args:
        store: where the frames are.
        pool: the recordings that ``indices`` counts.
        indices: which of them.
        labels: of these.
        shape: of an item.
        augment: applied to each item, or None.
    """

    def __init__(
        self,
        store: FrameStore,
        pool: str,
        indices: Sequence[int],
        labels: Sequence[int],
        shape: tuple[int, ...],
        augment: Transform | None,
    ) -> None:
        self.store, self.pool, self.indices, self.labels = store, pool, indices, labels
        self.shape, self.augment = shape, augment
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = self._frames(index).reshape(self.shape).float()
        return (x if self.augment is None else self.augment(x)), self.labels[index]

    def _frames(self, index: int) -> Tensor:
        known = self._kept.get(index)
        if known is not None:
            return known
        frames = torch.from_numpy(self.store.get(self.pool, int(self.indices[index])))
        if (len(self._kept) + 1) * frames.numel() <= KEPT_BYTES:
            self._kept[index] = frames
        return frames
