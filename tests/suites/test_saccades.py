import numpy as np
import pytest

from suites.datasets import saccades
from suites.datasets.saccades import AMPLITUDE, SENSOR, THRESHOLD, record, saccade_path, view


def bar():
    """A bright vertical bar in the middle of a dark 8x8 picture."""
    image = np.zeros((1, 8, 8))
    image[:, 1:7, 3:5] = 1.0
    return image


def line(start, end, samples=21):
    """A straight path of one millisecond a sample."""
    return np.arange(samples) * 1000.0, np.linspace(start, end, samples)


def by_recording(recordings, index):
    part = slice(*recordings.offsets[index : index + 2])
    return {name: getattr(recordings, name)[part] for name in "xytp"}


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("axis", ["x", "y"])
def test_a_moving_bar_turns_on_ahead_and_off_behind(direction, axis):
    image = bar() if axis == "x" else bar().transpose(0, 2, 1)
    end = [0.0, 2.0 * direction] if axis == "x" else [2.0 * direction, 0.0]
    events = by_recording(record(image, *line([0.0, 0.0], end)), 0)
    centre = (SENSOR - 1) / 2 + 2.0 * direction * events["t"] / 20_000
    ahead = (events[axis] - centre) * direction > 0
    assert events["p"].any()
    assert (~events["p"]).any()
    assert np.array_equal(events["p"], ahead)


def test_a_pixel_fires_once_for_every_threshold_that_its_log_brightness_crosses():
    # The picture fades from all dark to all bright: pictures instead of movement.
    path = np.arange(2) * 1000.0, np.zeros((2, 2))
    levels = iter([np.zeros((1, 1, 1)), np.ones((1, 1, 1))])
    patch = pytest.MonkeyPatch()
    patch.setattr(saccades, "view", lambda images, shift: next(levels))
    try:
        events = by_recording(record(np.zeros((1, 1, 1)), *path), 0)
    finally:
        patch.undo()
    change = np.log(saccades.FLOOR + 1) - np.log(saccades.FLOOR)
    assert len(events["t"]) == int(change / THRESHOLD) == 4
    assert events["p"].all()
    # Brightness rises linearly within the millisecond: crossings are evenly spaced.
    assert events["t"].tolist() == [round(1000 * k * THRESHOLD / change) for k in (1, 2, 3, 4)]


def test_nothing_moves_nothing_fires():
    recordings = record(bar(), *line([0.0, 0.0], [0.0, 0.0]))
    assert recordings.offsets.tolist() == [0, 0]
    assert len(recordings.t) == 0


def test_a_dark_picture_between_two_others_has_no_events():
    images = np.concatenate([bar(), np.zeros((1, 8, 8)), bar()])
    recordings = record(images, *saccade_path())
    counts = np.diff(recordings.offsets)
    assert counts[1] == 0
    assert counts[0] == counts[2] > 0
    first, last = by_recording(recordings, 0), by_recording(recordings, 2)
    assert all(np.array_equal(first[name], last[name]) for name in "xytp")


def test_recordings_do_not_depend_on_their_neighbours():
    rng = np.random.default_rng(0)
    images = rng.random((4, 8, 8))
    together, alone = record(images, *saccade_path()), record(images[2:3], *saccade_path())
    assert all(np.array_equal(by_recording(together, 2)[name], by_recording(alone, 0)[name]) for name in "xytp")


def test_events_are_sorted_by_time_and_lie_on_the_sensor():
    events = by_recording(record(bar(), *saccade_path()), 0)
    assert (np.diff(events["t"]) >= 0).all()
    assert events["t"].min() >= 0
    assert events["t"].max() <= 300_000
    assert max(events["x"].max(), events["y"].max()) < SENSOR


def test_the_path_is_a_closed_triangle_of_three_saccades():
    times, shift = saccade_path()
    assert times[-1] == 300_000
    assert np.array_equal(shift[0], shift[-1])
    assert np.ptp(shift, axis=0).tolist() == [AMPLITUDE, AMPLITUDE]
    directions = np.diff(shift, axis=0)
    turns = (np.abs(np.diff(directions, axis=0)) > 1e-9).any(axis=1)
    assert turns.sum() == 2


def test_the_view_is_centred_and_keeps_brightness():
    image = np.ones((1, 8, 8))
    seen = view(image, np.zeros(2))
    assert seen.shape == (1, SENSOR, SENSOR)
    assert np.allclose(seen, seen[:, ::-1, ::-1])
    assert np.allclose(seen[0, 4:12, 4:12], 1.0)
    assert seen[0, 0].max() == 0.0


def test_a_shift_by_whole_pixels_moves_the_view():
    image = np.random.default_rng(0).random((1, 8, 8))
    still, moved = view(image, np.zeros(2)), view(image, np.array([1.0, -2.0]))
    assert np.allclose(moved[0, 1:, :-2], still[0, :-1, 2:])
