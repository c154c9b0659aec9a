"""An event camera looking at pictures that move: brightness changes become ON and OFF events.

N-MNIST was recorded by a sensor that made three saccades along a triangle in front of still digits (Orchard et al.,
Frontiers in Neuroscience 2015). This does the same in arithmetic: pictures are sampled along such a path, and a pixel
emits an event whenever its log brightness has moved beyond a threshold since its last event, as a dynamic vision sensor
does and simulators of one do (Rebecq et al., ESIM, CoRL 2018). There is no noise and no refractory time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SENSOR = 16  # pixels a side
ZOOM = 1.5  # sensor pixels per picture pixel: 8x8 pictures cover 12x12, the rest is room to move
AMPLITUDE = 3.0  # sensor pixels between the ends of the triangle, a quarter of the picture
SACCADE_US = 100_000  # N-MNIST: three saccades of about 100 ms
SAMPLES = 20  # pictures per saccade; crossings between two are interpolated in time
THRESHOLD = 0.5  # change of log brightness per event; sensors are set to 0.1 to 0.5
FLOOR = 0.1  # brightness of black, so that its logarithm exists

# Log brightness is counted in whole units of 1 / RESOLUTION. Libraries and processors disagree in the last bit of a
# logarithm; integers keep that from ever moving an event, so that the events are the same everywhere.
RESOLUTION = 1 << 16
STEP = round(THRESHOLD * RESOLUTION)

# Corners of an isosceles triangle, (y, x) in units of the amplitude; the path is closed, its sides are the saccades.
CORNERS = np.array([[-0.5, -0.5], [0.5, 0.0], [-0.5, 0.5], [-0.5, -0.5]])


@dataclass(frozen=True)
class Recordings:
    """Events of several recordings, one after the other and each sorted by time.

    Args:
        x: column ``[events]``, uint8.
        y: row ``[events]``, uint8.
        t: microseconds since the start of the recording ``[events]``, int32.
        p: True where the brightness rose (ON) ``[events]``.
        offsets: recording ``i`` is ``offsets[i]:offsets[i + 1]``, int64.
    """

    x: np.ndarray
    y: np.ndarray
    t: np.ndarray
    p: np.ndarray
    offsets: np.ndarray


def saccade_path(samples: int = SAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Times in microseconds ``[1 + 3 * samples]`` and the picture's shift ``(y, x)`` in sensor pixels at each."""
    times = np.linspace(0.0, 3 * SACCADE_US, 3 * samples + 1)
    corners = np.arange(4) * SACCADE_US
    shift = np.stack([np.interp(times, corners, CORNERS[:, axis]) for axis in (0, 1)], axis=1)
    return times, shift * AMPLITUDE


def view(images: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """What the sensor sees of pictures at a shift from its centre, bilinear; black outside.

    Args:
        images: ``[n, h, w]`` in [0, 1].
        shift: ``(y, x)`` in sensor pixels.

    Returns:
        ``[n, SENSOR, SENSOR]``.
    """
    rows, columns = (_sampling(size, offset) for size, offset in zip(images.shape[1:], shift, strict=True))
    return np.asarray(rows @ images @ columns.T)


def _sampling(size: int, shift: float) -> np.ndarray:
    """Linear interpolation along one axis as a matrix ``[SENSOR, size]``."""
    centre = (size - 1) / 2 + (np.arange(SENSOR) - (SENSOR - 1) / 2 - shift) / ZOOM
    return np.maximum(0.0, 1.0 - np.abs(centre[:, None] - np.arange(size)))


def record(images: np.ndarray, times: np.ndarray, shifts: np.ndarray) -> Recordings:
    """Events of pictures that move along a path.

    Args:
        images: ``[n, h, w]`` in [0, 1].
        times: microseconds ``[s]``, rising.
        shifts: position at each time ``[s, 2]``, see :func:`view`.
    """
    before = _log_brightness(images, shifts[0])
    level = before.copy()  # of each pixel's last event
    parts = []
    for start, end, shift in zip(times[:-1], times[1:], shifts[1:], strict=True):
        now = _log_brightness(images, shift)
        # Beyond the threshold, not at it: the path ends where it began, and many pixels would fire at its last instant.
        count = np.sign(now - level) * (np.maximum(np.abs(now - level) - 1, 0) // STEP)
        parts.append(_crossings(level, before, now, count, start, end))
        level += count * STEP
        before = now
    return _sort(np.concatenate(parts, axis=1), len(images))


def _log_brightness(images: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return np.rint(np.log(FLOOR + view(images, shift)) * RESOLUTION).astype(np.int64)


def _crossings(
    level: np.ndarray, before: np.ndarray, now: np.ndarray, count: np.ndarray, start: float, end: float
) -> np.ndarray:
    """The events between two views, as columns ``(recording, t, y, x, p)``; brightness moves linearly in between."""
    where = np.nonzero(count)
    changes = count[where]
    repeat = np.abs(changes)
    event = np.repeat(np.arange(len(repeat)), repeat)
    nth = np.arange(len(event)) - np.repeat(np.cumsum(repeat) - repeat, repeat) + 1
    crossed = level[where][event] + nth * np.sign(changes)[event] * STEP
    first, last = before[where][event], now[where][event]
    t = start + np.clip((crossed - first) / (last - first), 0.0, 1.0) * (end - start)
    n, y, x = (index[event] for index in where)
    return np.stack([n, np.rint(t).astype(np.int64), y, x, changes[event] > 0])


def _sort(events: np.ndarray, recordings: int) -> Recordings:
    n, t, y, x, p = events[:, np.lexsort(events[::-1])]  # by recording, then time, then place: one order everywhere
    offsets = np.concatenate([[0], np.cumsum(np.bincount(n, minlength=recordings))]).astype(np.int64)
    return Recordings(x.astype(np.uint8), y.astype(np.uint8), t.astype(np.int32), p.astype(bool), offsets)
