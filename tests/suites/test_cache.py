import multiprocessing

import numpy as np
import pytest

from harness.contracts import Unavailable
from suites.datasets.cache import DamagedError, cached, read_cache, write_cache

META = {"version": 1}


def content():
    return {"a": np.arange(1000, dtype=np.int32), "b": np.array("text"), "c": np.zeros((2, 0))}


def refuse():
    raise AssertionError("made again")


@pytest.fixture
def path(empty):
    cached("folder", "file.npz", META, content)
    return empty / "folder" / "file.npz"


def test_content_is_made_once_and_comes_back(path):
    again = cached("folder", "file.npz", META, refuse)
    for name, array in content().items():
        assert again.arrays[name].dtype == array.dtype
        assert np.array_equal(again.arrays[name], array)
    assert again.meta == META
    assert again.sha256 == write_cache(path, content(), META).sha256


@pytest.mark.parametrize("keep", [0, 1, 50, 0.5, 0.99, -1])
def test_a_truncated_file_is_set_aside_and_made_again(path, keep):
    whole = path.read_bytes()
    path.write_bytes(whole[: round(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(DamagedError):
        read_cache(path, META)
    assert np.array_equal(cached("folder", "file.npz", META, content).arrays["a"], content()["a"])
    assert read_cache(path, META).meta == META
    aside = [p for p in path.parent.iterdir() if p != path]
    assert [p.name.startswith("file.npz.damaged-") for p in aside] == [True]


def test_no_flipped_bit_passes_unless_the_content_is_intact(path):
    whole = bytearray(path.read_bytes())
    found = 0
    for position in range(0, len(whole), 7):
        damaged = whole.copy()
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        try:
            arrays = read_cache(path, META).arrays
        except DamagedError:
            found += 1
        else:  # a bit of the container that nobody reads, such as a time
            assert np.array_equal(arrays["a"], content()["a"])
    assert found > 0.7 * len(whole) / 7


def test_altered_content_is_noticed_though_the_container_is_sound(path):
    with np.load(path) as file:
        arrays = dict(file)
    arrays["a"][3] += 1
    np.savez_compressed(path, **arrays)
    with pytest.raises(DamagedError, match="SHA-256"):
        read_cache(path, META)


def test_a_file_of_another_version_is_not_used(path):
    with pytest.raises(DamagedError, match="version is 1, expected 2"):
        read_cache(path, {"version": 2})


@pytest.mark.parametrize("foreign", [b"", b"not a zip", b"PK\x03\x04"])
def test_a_foreign_file_is_not_used(path, foreign):
    path.write_bytes(foreign)
    with pytest.raises(DamagedError):
        read_cache(path, META)


def test_pickles_are_never_loaded(path):
    np.savez(path, meta=np.array({"sha256": "", "meta": {}}, dtype=object))
    with pytest.raises(DamagedError):
        read_cache(path, META)


def test_a_complete_file_is_enough_where_nothing_can_be_written(path, monkeypatch):
    def no_writing(*parts):
        raise Unavailable("read-only", "")

    monkeypatch.setattr("suites.datasets.cache.make_folder", no_writing)
    assert cached("folder", "file.npz", META, refuse).meta == META
    path.write_bytes(b"")
    with pytest.raises(Unavailable):
        cached("folder", "file.npz", META, refuse)
    assert path.exists()


def test_an_unwritable_folder_is_unavailable(no_folder):
    with pytest.raises(Unavailable, match="SNNBENCH_DATA"):
        cached("folder", "file.npz", META, refuse)


def make_both(barrier, results):
    def make():
        barrier.wait(timeout=60)  # both processes have found the file missing or damaged
        return content()

    for name in ("missing.npz", "damaged.npz"):
        results.put(cached("folder", name, META, make).sha256)


def test_two_processes_may_make_the_same_files_at_once(empty):
    folder = empty / "folder"
    folder.mkdir(parents=True)
    (folder / "damaged.npz").write_bytes(b"damaged")
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=make_both, args=(barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    hashes = {results.get(timeout=120) for _ in range(4)}
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert hashes == {read_cache(folder / name, META).sha256 for name in ("missing.npz", "damaged.npz")}
    assert sorted(p.name.split("-")[0] for p in folder.iterdir()) == [
        "damaged.npz",
        "damaged.npz.damaged",
        "missing.npz",
    ]
