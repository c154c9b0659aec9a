import logging
import shutil

import numpy as np
import pytest
import torch

from harness.contracts import Unavailable
from suites.datasets import digit_events
from suites.datasets.digit_events import DigitEvents, DigitEventsOptions, load_events, load_frames, to_frames
from suites.datasets.digits import Digits
from suites.datasets.saccades import Recordings
from tests.suites.conftest import STEPS

# Of the published numbers: may not change without another GENERATOR.
EVENTS_SHA256 = "a880be6e6ca1f97556c259699915457a990d0e572c0598854aea8d6ab341b573"


@pytest.fixture
def copy(prepared, tmp_path, monkeypatch):
    """A copy of the prepared folder that a test may damage."""
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    monkeypatch.setenv("SNNBENCH_DATA", str(folder))
    return folder / "digit-events"


def recordings():
    arrays = dict(load_events().arrays)
    del arrays["labels"]
    return Recordings(**arrays)


def files(folder, start):
    return sorted(p.name for p in folder.iterdir() if p.name.startswith(start))


def test_the_events_are_the_same_everywhere(data):
    assert load_events().sha256 == EVENTS_SHA256
    assert DigitEvents().load(STEPS).details["events_sha256"] == EVENTS_SHA256


def test_every_digit_has_some_hundred_events_of_both_polarities(data):
    events = recordings()
    counts = np.diff(events.offsets)
    assert len(counts) == 1797
    assert 700 < counts.mean() < 750
    assert counts.min() > 400
    assert 0.4 < events.p.mean() < 0.6


def test_frames_count_the_events_of_each_pixel_and_polarity(data):
    events, frames = recordings(), load_frames(STEPS).arrays["frames"]
    assert frames.shape == (1797, STEPS, 2, 16, 16)
    for index in (0, 1000):
        part = slice(*events.offsets[index : index + 2])
        expected = np.zeros((2, 16, 16), dtype=int)
        np.add.at(expected, (events.p[part].astype(int), events.y[part], events.x[part]), 1)
        lost = expected - frames[index].sum(axis=0)
        assert lost.min() >= 0
        assert lost.sum() <= 2  # tonic leaves out the end of the last bin


def test_bins_are_equal_parts_of_the_recording(data):
    events, frames = recordings(), load_frames(STEPS).arrays["frames"]
    times = events.t[: events.offsets[1]]
    edges = np.linspace(times[0], times[-1], STEPS + 1)
    expected = np.histogram(times, edges)[0]
    assert np.abs(frames[0].sum(axis=(1, 2, 3)) - expected).max() <= 2


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_frames_of_any_number_of_steps(data, steps):
    events = recordings()
    few = Recordings(events.x, events.y, events.t, events.p, events.offsets[:4])
    assert to_frames(few, steps).shape == (3, steps, 2, 16, 16)


def test_a_recording_without_events_gives_zeros():
    nothing = np.zeros(0, dtype=np.uint8)
    one = np.array([5], dtype=np.uint8)
    empty = Recordings(nothing, nothing, nothing.astype(np.int32), nothing.astype(bool), np.array([0, 0]))
    assert to_frames(empty, 3).tolist() == np.zeros((1, 3, 2, 16, 16)).tolist()
    single = Recordings(one, one, one.astype(np.int32), one.astype(bool), np.array([0, 0, 1]))
    assert to_frames(single, 3).shape == (2, 3, 2, 16, 16)


def test_items_are_float_frames_with_the_split_of_the_digits(data):
    events, digits = DigitEvents().load(STEPS), Digits().load(1)
    x, _ = events.test[0]
    info = DigitEvents().info()
    assert (x.dtype, tuple(x.shape)) == (torch.float32, (STEPS, *info.sample))
    assert info.classes == 10
    assert "simulated" in info.source
    assert "simulated" in info.variant
    assert events.details["split_sha256"] == digits.details["split_sha256"]
    assert [events.test[i][1] for i in range(359)] == [digits.test[i][1] for i in range(359)]
    images, labels = load_events().arrays["labels"], load_frames(STEPS).arrays["labels"]
    assert np.array_equal(images, labels)


def test_limits_take_the_first_samples_and_are_marked(data):
    source = DigitEvents(DigitEventsOptions(n_train=30, n_test=10))
    part, whole = source.load(STEPS), DigitEvents().load(STEPS)
    assert (len(part.train), len(part.test)) == (30, 10)
    assert torch.equal(part.train[29][0], whole.train[29][0])
    assert source.info().variant.endswith("first 30 of train; first 10 of test")


def test_cached_frames_are_read_without_tonic_and_without_events(copy, monkeypatch):
    for name in files(copy, "events"):
        (copy / name).unlink()
    monkeypatch.setattr(digit_events, "to_frames", lambda *_: pytest.fail("made frames"))
    DigitEvents().prepare(STEPS)
    assert len(DigitEvents().load(STEPS).train) == 1438


@pytest.mark.parametrize("kind", ["frames", "events"])
def test_damaged_caches_are_set_aside_and_rebuilt(copy, kind, caplog):
    reference = load_frames(STEPS).sha256
    (name,) = files(copy, kind)
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    if kind == "events":  # they are read only where frames have to be made
        for frames in files(copy, "frames"):
            (copy / frames).unlink()
    with caplog.at_level(logging.WARNING):
        splits = DigitEvents().load(STEPS)
    assert splits.sha256 == reference
    assert "damaged" in caplog.text
    assert len(files(copy, name)) == 2
    assert (copy / name).stat().st_size == pytest.approx(len(content), rel=0.01)


def test_without_a_folder_the_data_are_unavailable(no_folder):
    for call in (DigitEvents().prepare, DigitEvents().load):
        with pytest.raises(Unavailable, match=r"\$SNNBENCH_DATA"):
            call(STEPS)


def test_info_reads_nothing(no_folder):
    assert DigitEvents().info().sample == (2, 16, 16)
