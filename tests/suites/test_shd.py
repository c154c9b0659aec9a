from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from suites.datasets.integrity import Damaged, Missing
from suites.datasets.shd import SHD
from tests.suites import datafiles
from tests.suites.datafiles import md5, pack, snapshot


@pytest.fixture
def made(empty):
    return datafiles.shd(empty)


def variant(**options):
    return SHD(SHD.options(allow_variant=True, **options))


def test_spikes_are_counted_in_equal_steps_of_the_window(made):
    splits = variant().load(7)
    x, y = splits.train[23]
    assert (x.shape, x.dtype, y) == ((7, 700), torch.float32, 3)
    times, units = made["train"][23]
    expected = np.zeros((7, 700))
    # Times are stored as half-precision seconds; tonic turns them into microseconds.
    micros = (times.astype(np.float16).astype(np.float64) * 1e6).astype(int)
    np.add.at(expected, (micros // 200_000, units), 1)
    assert np.array_equal(x.numpy(), expected)
    assert (len(splits.train), len(splits.test)) == (40, 20)


def test_channels_are_counted_together(made):
    whole, part = variant().load(7), variant(channels=140).load(7)
    assert variant(channels=140).info().sample == (140,)
    assert torch.equal(part.test[2][0], whole.test[2][0].reshape(7, 140, 5).sum(2))
    with pytest.raises(ValidationError, match="must divide 700"):
        SHD.options(channels=150)


def test_a_shorter_window_leaves_the_end_out(made):
    x = variant(window_ms=700).load(7).train[0][0]
    times, _ = made["train"][0]
    assert x.sum() == (times.astype(np.float16) < 0.7).sum()


def test_files_without_archives_are_refused_unless_told(empty, made):
    before = snapshot(empty)
    with pytest.raises(Damaged, match=r"40 of 8156 recordings, without shd_train\.h5\.zip"):
        SHD().load(4)
    assert variant().load(4).details["variant"].startswith("train: 40 of 8156 recordings")
    assert snapshot(empty) == before


@pytest.fixture
def canonical(empty, made, monkeypatch):
    pools = {}
    for name, pool in SHD.pools.items():
        archive = empty / "SHD" / pool.download.name
        (empty / "one").mkdir(exist_ok=True)
        (empty / "one" / f"shd_{name}.h5").write_bytes((empty / "SHD" / f"shd_{name}.h5").read_bytes())
        pack(archive, empty / "one")
        (empty / "one" / f"shd_{name}.h5").unlink()
        count = {"train": 40, "test": 20}[name]
        pools[name] = replace(pool, count=count, download=replace(pool.download, md5=md5(archive)))
    (empty / "one").rmdir()
    monkeypatch.setattr(SHD, "pools", pools)
    monkeypatch.setattr(SHD, "downloads", tuple(pool.download for pool in pools.values()))
    return empty


def test_published_archives_are_unpacked(canonical):
    before = snapshot(canonical)
    for name in ("train", "test"):
        (canonical / "SHD" / f"shd_{name}.h5").unlink()
    source = SHD()
    source.prepare(4)
    assert "variant" not in source.load(4).details
    assert source.status().state == "present"
    assert snapshot(canonical) == before


def test_a_truncated_file_is_damaged(canonical):
    path = canonical / "SHD" / "shd_test.h5"
    path.write_bytes(path.read_bytes()[:2000])
    before = snapshot(canonical)
    with pytest.raises(Damaged, match=r"shd_test\.h5 cannot be read"):
        SHD().load(4)
    assert snapshot(canonical) == before


def test_a_damaged_recording_is_named_by_its_file_and_number(empty, made):
    with h5py.File(empty / "SHD" / "shd_test.h5", "a") as file:
        file["spikes/units"][3] = np.full(50, 60_000, dtype=np.uint16)
    with pytest.raises(Damaged, match=r"recording 3 of .*shd_test\.h5 cannot be read"):
        variant().load(4).test[3]


def test_an_empty_file_of_recordings_is_refused(empty, made):
    with h5py.File(empty / "SHD" / "shd_test.h5", "a") as file:
        del file["labels"]
        file["labels"] = np.zeros(0, dtype=int)
    with pytest.raises(Damaged, match="has no recording"):
        variant().load(4)


def test_a_missing_file_is_missing(empty, made):
    (empty / "SHD" / "shd_train.h5").unlink()
    with pytest.raises(Missing, match=r"shd_train\.h5 is missing"):
        variant().load(4)


def test_addresses_and_checksums_are_tonics(empty):
    from suites.datasets.static import torchvision_sets

    torchvision_sets()
    from tonic.datasets import SHD as THEIRS

    expected = [(THEIRS.base_url + getattr(THEIRS, f"{p}_zip"), getattr(THEIRS, f"{p}_zip"),
                 getattr(THEIRS, f"{p}_md5")) for p in ("train", "test")]  # fmt: skip
    assert [(d.urls[0], d.name, d.md5) for d in SHD.downloads] == expected
    assert THEIRS.sensor_size == SHD.sensor
