import multiprocessing

import numpy as np
import pytest
import torch

from suites.datasets import frames
from suites.datasets.frames import EventFrames, FrameStore, Framing
from tests.suites.datafiles import events

KIND = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])


def recording(count=400, seed=0, width=34, height=34):
    made = np.empty(count, dtype=KIND)
    for name, values in zip("xytp", events(count, width, height, seed), strict=True):
        made[name] = values
    return made


def counted(found, edges, by):
    """Frames of a recording by definition: one event after the other."""
    expected = np.zeros((len(edges) - 1, 2, 34, 34), dtype=np.uint8)
    for place, event in enumerate(found):
        value = place if by == "number" else event["t"]
        frame = np.searchsorted(edges, value, side="right") - 1
        if 0 <= frame < len(expected):
            expected[frame, event["p"], event["y"], event["x"]] += 1
    return expected


def test_frames_of_equally_many_events_are_counts():
    found = recording(403)
    made = Framing(4, (34, 34, 2), (34, 34), "number")(found)
    assert np.array_equal(made, counted(found, [0, 100, 200, 300, 400], "number"))
    assert made.dtype == np.uint8


def test_frames_of_equal_length_are_counts():
    found = recording()
    step = (found["t"][-1] - found["t"][0]) // 5
    made = Framing(5, (34, 34, 2), (34, 34), "time")(found)
    assert np.array_equal(made, counted(found, found["t"][0] + step * np.arange(6), "time"))


def test_a_fixed_window_does_not_depend_on_the_recordings_length():
    found = recording()
    made = Framing(6, (34, 34, 2), (34, 34), "window", 600_000)(found)
    assert np.array_equal(made, counted(found, np.arange(7) * 100_000, "time"))
    assert made[3:].sum() == 0  # the recording lasts 300 ms


def test_smaller_frames_count_neighbours_together():
    found = recording()
    whole = Framing(2, (34, 34, 2), (34, 34), "number")(found)
    half = Framing(2, (34, 34, 2), (17, 17), "number")(found)
    assert np.array_equal(half, whole.reshape(2, 2, 17, 2, 17, 2).sum((3, 5)))


def test_width_and_height_are_not_mixed_up():
    found = recording(width=20, height=10)
    made = Framing(1, (20, 10, 2), (20, 10), "number")(found)
    assert made.shape == (1, 2, 10, 20)
    assert made.sum() == 400


def test_many_events_of_one_pixel_do_not_wrap_round():
    found = recording(300)
    found["x"], found["y"], found["p"] = 3, 4, 1
    made = Framing(1, (34, 34, 2), (34, 34), "number")(found)
    assert made[0, 1, 4, 3] == made.sum() == 255


@pytest.mark.parametrize("split_by", ["number", "time"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_few_events_give_all_frames(split_by, count):
    made = Framing(8, (34, 34, 2), (34, 34), split_by)(recording(count))
    assert made.shape == (8, 2, 34, 34)
    assert made.sum() <= count


class Counter:
    def __init__(self):
        self.calls = []

    def __call__(self, pool, index):
        self.calls.append((pool, index))
        return np.full((2, 2, 3, 3), index, dtype=np.uint8)


@pytest.fixture
def store(empty):
    return FrameStore(("cache", "nmnist", "frames-T2-x"), Counter())


def test_frames_are_made_once(store, empty):
    assert store.get("train", 3).max() == 3
    assert FrameStore(store.folder, Counter()).get("train", 3).max() == 3
    assert store.get("train", 3).max() == 3
    assert store.make.calls == [("train", 3)]


def test_filling_makes_what_is_missing(store):
    store.get("train", 1)
    store.fill("train", [0, 1, 2])
    assert [index for _, index in store.make.calls] == [1, 0, 2]


@pytest.mark.parametrize(
    "damage",
    [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: c[:200] + bytes([c[200] ^ 1]) + c[201:]],
    ids=["truncated", "empty", "flipped bit"],
)
def test_damaged_frames_are_set_aside_and_made_again(store, empty, damage, caplog):
    store.get("train", 5)
    (file,) = (empty / "cache" / "nmnist" / "frames-T2-x").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert store.get("train", 5).max() == 5
    assert store.make.calls == [("train", 5)] * 2
    assert "damaged" in caplog.text
    assert sorted(p.name.split(".damaged")[0] for p in file.parent.iterdir()) == [file.name, file.name]
    assert store.get("train", 5).max() == 5
    assert len(store.make.calls) == 2


def test_frames_of_another_recording_under_the_name_are_not_used(store, empty):
    store.get("train", 5)
    (file,) = (empty / "cache" / "nmnist" / "frames-T2-x").iterdir()
    file.rename(file.with_name("train-000006.npz"))
    assert store.get("train", 6).max() == 6


def test_frames_need_no_folder_to_be_kept_in(store, no_folder):
    assert store.get("train", 4).max() == 4


def test_numpys_generator_is_left_alone(store):
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    store.get("train", 1)
    store.get("train", 1)
    Framing(4, (34, 34, 2), (34, 34), "number")(recording())
    assert np.array_equal(np.random.get_state()[1], before)


def write_all(found):
    """In a process of its own: every recording three times."""
    store = FrameStore(("cache", "x"), lambda pool, index: np.full((4, 2, 34, 34), index, dtype=np.uint8))
    found.put(sum(int(store.get("train", i).max()) == i for _ in range(3) for i in range(40)))


def test_several_processes_may_write_at_once(empty):
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    running = [context.Process(target=write_all, args=(found,)) for _ in range(4)]
    for process in running:
        process.start()
    assert [found.get() for _ in running] == [120] * 4
    for process in running:
        process.join()
    left = sorted(p.name for p in (empty / "cache" / "x").iterdir())
    assert left == [f"train-{i:06d}.npz" for i in range(40)]


def test_items_are_kept_in_memory_up_to_a_limit(store, monkeypatch):
    monkeypatch.setattr(frames, "KEPT_BYTES", 2 * 2 * 9 * 2)
    data = EventFrames(store, "train", [7, 8, 9], [0, 1, 2], (2, 2, 3, 3), None)
    for _ in range(2):
        for i in range(3):
            x, y = data[i]
            assert (x.dtype, float(x.max()), y) == (torch.float32, 7.0 + i, i)
    assert len(data._kept) == 2


def test_augmentation_leaves_what_is_kept_alone(store):
    data = EventFrames(store, "train", [7], [0], (2, 2, 3, 3), lambda x: x.mul_(0))
    assert data[0][0].sum() == 0
    data.augment = None
    assert data[0][0].max() == 7
