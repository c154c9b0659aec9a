import importlib.util
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.contracts import Unavailable
from suites.datasets.event_sets import CIFAR10DVS, NMNIST, DVSGesture, NCaltech101
from suites.datasets.integrity import Damaged, Missing
from tests.suites import datafiles
from tests.suites.datafiles import md5, pack, snapshot, touch_later, write_bin


@pytest.fixture
def root(empty):
    datafiles.nmnist(empty)
    return empty


@pytest.fixture
def canonical(root, monkeypatch):
    """The archives are there, and the small set is the published one."""
    for pool in NMNIST.pools.values():
        pack(root / "NMNIST" / pool.download.name, root / "NMNIST" / pool.folder, pool.folder)
    publish(root, monkeypatch)
    return root


def publish(root, monkeypatch, counts=(20, 10)):
    pools = {}
    for (name, pool), count in zip(NMNIST.pools.items(), counts, strict=True):
        digest = md5(root / "NMNIST" / pool.download.name)
        pools[name] = replace(pool, count=count, download=replace(pool.download, md5=digest))
    monkeypatch.setattr(NMNIST, "pools", pools)
    monkeypatch.setattr(NMNIST, "downloads", tuple(pool.download for pool in pools.values()))


def variant(kind=NMNIST, **options):
    return kind(kind.options(allow_variant=True, **options))


def test_published_recordings_become_frames(canonical):
    source = NMNIST()
    source.prepare(4)
    splits = source.load(4)
    x, y = splits.train[5]  # sorted by name: class 2, second recording
    assert (x.shape, x.dtype, y) == ((4, *source.info().sample), torch.float32, 2)
    px, py, _, p = datafiles.events(200, 34, 34, 2001)
    expected = np.zeros((2, 34, 34))
    np.add.at(expected, (p, py, px), 1)
    assert np.array_equal(x.sum(0).numpy(), expected)
    assert (len(splits.train), len(splits.test)) == (20, 10)
    assert "variant" not in splits.details
    assert source.status().state == "present"


def test_prepared_frames_are_read_without_tonic(canonical):
    import subprocess
    import sys

    NMNIST().prepare(4)
    known = {name: (pool.count, pool.download.md5) for name, pool in NMNIST.pools.items()}
    code = f"""
import sys
from dataclasses import replace
from suites.datasets.event_sets import NMNIST
known = {known}
NMNIST.pools = {{n: replace(p, count=known[n][0], download=replace(p.download, md5=known[n][1]))
                for n, p in NMNIST.pools.items()}}
splits = NMNIST().load(4)
print(len(splits.train), float(splits.train[0][0].sum()), "tonic" in sys.modules, "torchvision" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found.stdout.split() == ["20", "200.0", "False", "False"], found.stderr


def test_a_subset_without_archives_is_refused_unless_told(root):
    before = snapshot(root)
    for act in (NMNIST().verify, lambda: NMNIST().prepare(2), lambda: NMNIST().load(2)):
        with pytest.raises(Damaged, match=r"Train: 20 of 60000 recordings, without train\.zip, which has a checksum"):
            act()
    assert NMNIST().status().state == "damaged"
    splits = variant().load(2)
    told = splits.details["variant"]
    assert told.startswith("Train: 20 of 60000 recordings, without train.zip")
    assert "Test: 10 of 10000 recordings" in told
    assert variant().status().state == "variant"
    assert snapshot(root) == before


def test_a_variant_remembered_with_permission_is_refused_without(root):
    variant().load(2)
    with pytest.raises(Damaged):
        NMNIST().load(2)


def test_the_hash_of_a_variant_follows_its_content(root):
    before = variant().load(2).sha256
    assert variant().load(2).sha256 == before
    assert variant().load(3).sha256 != before
    assert variant(split_by="time").load(2).sha256 != before
    assert variant(augment="flip").load(2).sha256 == before
    write_bin(root / "NMNIST" / "Train" / "3" / "new.bin", *datafiles.events(200, 34, 34, 1))
    touch_later(root / "NMNIST" / "Train" / "3")
    assert variant().load(2).sha256 != before


def test_an_archive_with_another_checksum_is_named(canonical, monkeypatch):
    archive = canonical / "NMNIST" / "train.zip"
    expected = NMNIST.pools["train"].download.md5
    archive.write_bytes(archive.read_bytes() + b"more")
    before = snapshot(canonical)
    with pytest.raises(Damaged) as caught:
        NMNIST().load(2)
    assert f"the md5 of train.zip is {md5(archive)}, expected {expected}" in str(caught.value)
    assert snapshot(canonical) == before
    assert "the md5 of train.zip" in variant().load(2).details["variant"]


def test_a_half_extracted_folder_is_told_from_a_whole_one(canonical):
    (canonical / "NMNIST" / "Train" / "7" / "00001.bin").unlink()
    before = snapshot(canonical)
    with pytest.raises(Damaged, match=r"not what is in train\.zip: 1 of 20 files are missing \(7/00001\.bin\)"):
        NMNIST().load(2)
    assert snapshot(canonical) == before


def test_a_recording_that_was_cut_when_extracted_is_noticed(canonical):
    path = canonical / "NMNIST" / "Test" / "7" / "00000.bin"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(Damaged, match=r"1 of 10 files have another size than in the archive \(7/00000\.bin\)"):
        NMNIST().prepare(2)


def test_an_archive_with_fewer_recordings_than_published_is_noticed(canonical, monkeypatch):
    publish(canonical, monkeypatch, counts=(21, 10))
    with pytest.raises(Damaged, match="20 of 21 recordings"):
        NMNIST().load(2)


def test_a_missing_class_folder_is_refused_even_as_a_variant(root):
    shutil.rmtree(root / "NMNIST" / "Train" / "4")
    before = snapshot(root)
    with pytest.raises(Damaged, match="no recording of 1 of 10 classes"):
        variant().load(2)
    assert snapshot(root) == before


def test_a_folder_that_is_no_class_is_refused(root):
    (root / "NMNIST" / "Train" / "4").rename(root / "NMNIST" / "Train" / "four")
    with pytest.raises(Damaged, match="no class"):
        variant().load(2)


def test_an_empty_split_is_refused(root):
    shutil.rmtree(root / "NMNIST" / "Test")
    (root / "NMNIST" / "Test").mkdir()
    with pytest.raises(Damaged, match="Test has no recording"):
        variant().load(2)


def test_a_missing_split_is_missing(root):
    shutil.rmtree(root / "NMNIST" / "Test")
    with pytest.raises(Missing, match="Test is missing"):
        variant().load(2)


def test_a_damaged_recording_of_a_variant_is_named(root):
    path = root / "NMNIST" / "Train" / "0" / "00000.bin"
    path.write_bytes(path.read_bytes()[:-2])
    before = snapshot(root)
    with pytest.raises(Damaged, match=r"00000\.bin cannot be read"):
        variant().prepare(2)
    assert snapshot(root) == before


def test_a_recording_of_no_bytes_is_damage_not_silence(root):
    (root / "NMNIST" / "Train" / "3" / "00001.bin").write_bytes(b"")
    with pytest.raises(Damaged, match=r"00001\.bin is empty \(and 0 more\)"):
        variant().load(2)


def test_a_recording_that_links_to_nothing_is_named(root):
    path = root / "NMNIST" / "Train" / "3" / "00001.bin"
    path.unlink()
    path.symlink_to(root / "not mounted" / path.name)
    with pytest.raises(Damaged, match=r"the link .*00001\.bin leads nowhere"):
        variant().load(2)


def test_an_empty_base_is_a_set_that_is_missing(empty):
    (empty / "CIFAR10DVS").mkdir(parents=True)
    assert CIFAR10DVS().status().state == "missing"


def test_archives_are_unpacked_when_their_folders_are_not_there(canonical):
    before = snapshot(canonical)
    for folder in ("Train", "Test"):
        shutil.rmtree(canonical / "NMNIST" / folder)
    packed = snapshot(canonical)
    status = NMNIST().status()
    assert (status.state, status.detail) == ("present", "train.zip, test.zip as published, unpacked when first needed")
    assert snapshot(canonical) == packed
    assert len(NMNIST().load(2).train) == 20
    assert snapshot(canonical) == before


def test_a_damaged_archive_is_not_unpacked(canonical):
    shutil.rmtree(canonical / "NMNIST" / "Train")
    archive = canonical / "NMNIST" / "train.zip"
    archive.write_bytes(archive.read_bytes()[:3000])
    before = snapshot(canonical)
    assert NMNIST().status().state == "damaged"
    with pytest.raises(Damaged, match=r"train\.zip is not the published file: its md5 is"):
        variant().load(2)
    assert snapshot(canonical) == before


def test_a_subset_takes_turns_and_only_its_frames_are_made(root):
    source = variant(n_train=10, n_test=10)
    source.prepare(3)
    splits = source.load(3)
    assert sorted(splits.train[i][1] for i in range(10)) == list(range(10))
    (folder,) = (root / "cache" / "nmnist").glob("frames-*")
    assert len(list(folder.glob("train-*"))) == 10
    assert source.info().variant == "10 samples of train, 10 samples of test (seed 0)"


def test_training_frames_are_augmented_and_test_frames_are_not(root):
    splits, plain = variant(augment="flip-roll").load(2), variant().load(2)
    torch.manual_seed(0)
    assert not all(torch.equal(splits.train[i][0], plain.train[i][0]) for i in range(5))
    assert all(torch.equal(splits.test[i][0], plain.test[i][0]) for i in range(5))


def test_gestures_and_their_folders(empty):
    datafiles.dvs_gesture(empty)
    source = variant(DVSGesture, size=[32, 32])
    splits = source.load(5)
    assert source.info().sample == (2, 32, 32)
    assert (len(splits.train), len(splits.test)) == (22, 22)
    assert splits.train[0][0].shape == (5, 2, 32, 32)
    assert splits.train[0][0].sum() == 300
    assert sorted({splits.test[i][1] for i in range(22)}) == list(range(11))


def test_objects_are_numbered_by_name_and_divided(empty):
    datafiles.ncaltech101(empty)
    source = variant(NCaltech101, size=[45, 60])
    splits = source.load(2)
    assert (len(splits.train), len(splits.test)) == (909, 101)
    assert sorted(splits.test.labels) == list(range(101))
    assert splits.train[0][0].shape == (2, 2, 45, 60)
    assert splits.details["variant"].startswith("Caltech101: 1010 of 8709 recordings")
    assert not set(splits.train.indices) & set(splits.test.indices)
    assert "no published split" in source.info().source
    assert variant(NCaltech101, split_seed=1).load(2).test.indices != splits.test.indices


@pytest.fixture
def moved(empty):
    """CIFAR10-DVS's folders, with files that hold nothing."""
    for kind in CIFAR10DVS.kinds:
        for i in [0, 1, 99, *range(100, 120)]:
            path = empty / "CIFAR10DVS" / kind / f"cifar10_{kind}_{i}.aedat4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{kind} {i}".encode())
    return empty


def test_the_splits_of_moved_images(moved):
    random = variant(CIFAR10DVS).load(2)
    assert (len(random.train), len(random.test)) == (210, 20)
    assert np.bincount(random.test.labels).tolist() == [2] * 10
    source = variant(CIFAR10DVS, split="tebn", size=[48, 48])
    tebn = source.load(2)
    assert (len(tebn.train), len(tebn.test)) == (200, 30)
    assert tebn.details["split_sha256"] != random.details["split_sha256"]
    assert "recordings 0 to 99" in source.info().source
    assert source.info().sample == (2, 48, 48)


def test_reading_moved_images_needs_a_package_or_says_what_is_damaged(moved):
    here = importlib.util.find_spec("aedat") is not None
    with pytest.raises(Unavailable, match="cannot be read" if here else "needs the package aedat; install it"):
        variant(CIFAR10DVS).load(2).train[0]


def test_moved_images_become_frames(empty):
    pytest.importorskip("aedat", reason="tonic reads CIFAR10-DVS with the optional package aedat")
    for label, kind in enumerate(CIFAR10DVS.kinds):
        for i in range(10):
            path = empty / "CIFAR10DVS" / kind / f"cifar10_{kind}_{i}.aedat4"
            datafiles.write_aedat4(path, *datafiles.events(300, 128, 128, 10 * label + i))
    splits = variant(CIFAR10DVS).load(1)
    assert (len(splits.train), len(splits.test)) == (90, 10)
    x, label = splits.train[40]
    name = str(variant(CIFAR10DVS).catalogue().arrays["all_names"][splits.train.indices[40]])
    px, py, _, p = datafiles.events(300, 128, 128, 10 * label + int(name.split("_")[2].removesuffix(".aedat4")))
    expected = np.zeros((2, 128, 128))
    np.add.at(expected, (p, py, px), 1)
    assert np.array_equal(x[0].numpy(), expected)
    assert name.startswith(f"{CIFAR10DVS.kinds[label]}/")


def test_the_archives_of_the_classes_are_unpacked_and_compared(moved, monkeypatch):
    folder = moved / "CIFAR10DVS"
    for kind in CIFAR10DVS.kinds:
        pack(moved / "inner" / f"{kind}.zip", folder / kind, kind)
        shutil.rmtree(folder / kind)
    archive = folder / "CIFAR10DVS.zip"
    pack(archive, moved / "inner")
    shutil.rmtree(moved / "inner")
    pool = CIFAR10DVS.pools["all"]
    download = replace(pool.download, md5=md5(archive))
    monkeypatch.setattr(CIFAR10DVS, "pools", {"all": replace(pool, count=230, download=download)})
    monkeypatch.setattr(CIFAR10DVS, "downloads", (download,))
    splits = CIFAR10DVS().load(2)
    assert "variant" not in splits.details
    assert len(splits.train) + len(splits.test) == 230
    (folder / "frog" / "cifar10_frog_99.aedat4").unlink()
    touch_later(folder / "frog")
    with pytest.raises(Damaged, match=r"1 of 230 files are missing \(frog/cifar10_frog_99\.aedat4\)"):
        CIFAR10DVS().load(2)


@pytest.mark.parametrize("kind", [NMNIST, DVSGesture, CIFAR10DVS, NCaltech101])
def test_info_reads_no_file(kind, no_folder):
    info = kind().info()
    assert info.sample == (2, kind.sensor[1], kind.sensor[0])
    assert not info.static


@pytest.mark.parametrize("kind", [NMNIST, DVSGesture, CIFAR10DVS, NCaltech101])
def test_addresses_checksums_and_sensors_are_tonics(kind, empty):
    from suites.datasets.static import torchvision_sets

    torchvision_sets()
    import tonic.datasets

    theirs = getattr(tonic.datasets, kind.loader)
    if len(kind.pools) == 2:
        expected = [(getattr(theirs, f"{p}_url"), getattr(theirs, f"{p}_filename"), getattr(theirs, f"{p}_md5"))
                    for p in ("train", "test")]  # fmt: skip
    else:
        expected = [(theirs.url, theirs.filename, theirs.file_md5)]
    assert [(d.urls[0], d.name, d.md5) for d in kind.downloads] == expected
    assert theirs.sensor_size in (None, kind.sensor)
    assert kind.base == kind.loader == theirs.__name__
    if theirs.__name__ == "CIFAR10DVS":
        assert {name: i for i, name in enumerate(kind.kinds)} == theirs.classes


def test_the_order_of_recordings_follows_their_names(root):
    names = [p.relative_to(root / "NMNIST" / "Train").as_posix() for p in (root / "NMNIST" / "Train").rglob("*.bin")]
    found = variant().catalogue().arrays["train_names"].tolist()
    assert found == sorted(names)
