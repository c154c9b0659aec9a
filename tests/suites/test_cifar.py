import pickle
import tarfile
import threading

import numpy as np
import pytest
import torch

from harness.contracts import Unavailable
from suites.datasets.cifar import CIFAR10, CIFAR100, SequentialCIFAR10
from suites.datasets.integrity import Damaged, Missing
from suites.datasets.static import torchvision_sets
from tests.suites import datafiles
from tests.suites.datafiles import md5, snapshot, touch_later


@pytest.fixture
def root(empty):
    datafiles.cifar10(empty)
    return empty


def variant(kind=CIFAR10, **options):
    return kind(kind.options(allow_variant=True, **options))


@pytest.fixture
def canonical(root, monkeypatch):
    """torchvision's table of checksums says what the small files have: they are the published ones."""
    kind, folder = torchvision_sets().CIFAR10, root / "cifar-10-batches-py"
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(kind, name, [[file, md5(folder / file)] for file, _ in getattr(kind, name)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(folder / "batches.meta")})
    return root


def test_images_and_labels_are_the_files(root):
    made = pickle.loads((root / "cifar-10-batches-py" / "data_batch_2").read_bytes())
    splits = variant(normalise=False).load(3)
    x, y = splits.train[13]
    assert (x.shape, x.dtype) == ((3, 3, 32, 32), torch.float32)
    assert np.array_equal(np.rint(x[2].numpy() * 255), made["data"][3].reshape(3, 32, 32))
    assert y == made["labels"][3]
    assert (len(splits.train), len(splits.test)) == (50, 20)


def test_published_files_are_no_variant(canonical):
    source = CIFAR10()
    source.prepare(2)
    splits = source.load(2)
    assert "variant" not in splits.details
    assert source.status().state == "present"
    assert splits.details["checksums"]["test_batch"] == f"md5:{md5(canonical / 'cifar-10-batches-py' / 'test_batch')}"


def test_other_files_are_refused_unless_told(root):
    before = snapshot(root)
    source = CIFAR10()
    for act in (source.verify, lambda: source.prepare(2), lambda: source.load(2)):
        with pytest.raises(Damaged) as caught:
            act()
        told = str(caught.value)
        assert "data_batch_1" in told
        assert "c99cafc152244af753f735de768cd75f" in told  # torchvision's
        assert md5(root / "cifar-10-batches-py" / "data_batch_1") in told
        assert "allow_variant" in told
    assert snapshot(root) == before


def test_a_cache_made_with_permission_gives_none_without(root):
    variant().load(2)
    with pytest.raises(Damaged):
        CIFAR10().load(2)


def test_a_variant_says_so_in_the_splits_and_the_status(root):
    splits = variant().load(2)
    assert splits.details["variant"].startswith("checksums differ from the published ones: data_batch_1, ")
    status = variant().status()
    assert (status.state, status.where) == ("variant", str(root / "cifar-10-batches-py"))
    assert CIFAR10().status().state == "damaged"


def test_hash_and_split_follow_from_content_and_options(root):
    one, same = variant().load(2), variant(augment="crop-flip", encoding="rate").load(4)
    assert one.sha256 == same.sha256
    limited = variant(n_train=20).load(2)
    assert limited.sha256 != one.sha256
    assert limited.details["split_sha256"] != one.details["split_sha256"]
    batch = root / "cifar-10-batches-py" / "data_batch_5"
    content = pickle.loads(batch.read_bytes())
    content["data"][0, 0] ^= 1
    batch.write_bytes(pickle.dumps(content))
    touch_later(batch)
    assert variant().load(2).sha256 != one.sha256


def test_a_subset_is_balanced_and_declared(root):
    source = variant(n_train=20, n_test=10)
    splits = source.load(2)
    labels = [splits.train[i][1] for i in range(20)]
    assert np.bincount(labels).tolist() == [2] * 10
    assert source.info().variant == "20 samples of train, 10 samples of test (seed 0)"
    assert len(splits.test) == splits.details["test_samples"] == 10


def test_info_reads_no_file(no_folder):
    info = CIFAR10().info()
    assert (info.sample, info.classes, info.static) == ((3, 32, 32), 10, True)
    assert not CIFAR10(CIFAR10.options(encoding="rate")).info().static


def test_a_missing_folder_names_the_file_and_the_place(empty):
    with pytest.raises(Missing) as caught:
        CIFAR10().load(2)
    assert f"put cifar-10-python.tar.gz into {empty}" in str(caught.value)
    assert CIFAR10().status().state == "missing"
    assert "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz" in CIFAR10().status().detail


def test_a_half_extracted_folder_names_the_missing_file(root):
    (root / "cifar-10-batches-py" / "data_batch_4").unlink()
    before = snapshot(root)
    with pytest.raises(Missing, match="data_batch_4 is missing"):
        variant().load(2)
    assert snapshot(root) == before


def test_a_truncated_batch_is_damaged_even_as_a_variant(root):
    batch = root / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:1000])
    before = snapshot(root)
    with pytest.raises(Damaged, match="cannot be read") as caught:
        variant().load(2)
    assert "\n" not in str(caught.value)
    assert snapshot(root) == before


def test_an_empty_split_is_refused(empty):
    datafiles.cifar10(empty, test=0)
    with pytest.raises(Damaged, match=r"the test split in .* is empty"):
        variant().load(2)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"labels": [0] * 9}, "59|49 labels"), ({"labels": [12] * 10}, "labels from 0 to 12")],
    ids=["too few", "out of range"],
)
def test_labels_that_do_not_fit_are_refused(root, change, words):
    batch = root / "cifar-10-batches-py" / "data_batch_1"
    batch.write_bytes(pickle.dumps(pickle.loads(batch.read_bytes()) | change))
    with pytest.raises(Damaged, match=words):
        variant().load(2)


def tarball(root):
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(root / "cifar-10-batches-py", "cifar-10-batches-py")
    for path in (root / "cifar-10-batches-py").iterdir():
        path.unlink()
    (root / "cifar-10-batches-py").rmdir()
    return root / "cifar-10-python.tar.gz"


def test_an_archive_with_another_checksum_is_refused_and_kept(root):
    archive = tarball(root)
    before = snapshot(root)
    assert variant().status().state == "damaged"
    with pytest.raises(Damaged) as caught:
        variant().load(2)
    assert str(archive) in str(caught.value)
    assert "c58f30108f718f92721af3b95e74349a" in str(caught.value)
    assert snapshot(root) == before


def test_a_published_archive_is_unpacked(canonical, monkeypatch):
    from dataclasses import replace

    archive = tarball(canonical)
    monkeypatch.setattr(CIFAR10, "downloads", (replace(CIFAR10.downloads[0], md5=md5(archive)),))
    assert len(CIFAR10().load(2).train) == 50
    assert archive.is_file()


def test_a_set_is_found_one_folder_down(empty):
    datafiles.cifar10(empty / "CIFAR10")
    assert len(variant().load(2).train) == 50
    assert variant().path == empty / "CIFAR10" / "cifar-10-batches-py"


def test_decoded_images_are_kept_and_a_damaged_copy_is_made_anew(root, caplog):
    first = variant().load(2)
    (copy,) = (root / "cache" / "CIFAR10").glob("decoded-*.npz")
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    again = variant().load(2)
    assert again.sha256 == first.sha256
    assert torch.equal(again.train[7][0], first.train[7][0])
    assert "damaged" in caplog.text
    assert len(list((root / "cache" / "CIFAR10").glob("decoded-*.npz"))) == 1


def test_no_copy_can_be_kept_where_nothing_can_be_written(root):
    (root / "cache").write_text("in the way")
    assert len(variant().load(2).train) == 50


def test_several_may_make_the_copy_at_once(root):
    found, errors = [], []

    def load():
        try:
            found.append(variant().load(2).sha256)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=load) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(set(found)) == 1


def test_the_hundred_classes(empty):
    datafiles.cifar100(empty)
    splits = variant(CIFAR100).load(2)
    assert sorted(splits.train[i][1] for i in range(100)) == list(range(100))
    assert CIFAR100().info().classes == 100


def test_columns_one_after_the_other(root):
    source, images = variant(SequentialCIFAR10), variant()
    columns, label = source.load(32).train[4]
    image, same = images.load(1).train[4]
    assert columns.shape == (32, *source.info().sample)
    assert torch.equal(columns[11], image[0, :, :, 11])
    assert label == same
    assert not source.info().static
    with pytest.raises(ValueError, match="T must be 32, not 8"):
        source.load(8)


def test_addresses_and_checksums_are_torchvisions():
    for ours, theirs in ((CIFAR10, torchvision_sets().CIFAR10), (CIFAR100, torchvision_sets().CIFAR100)):
        (download,) = ours.downloads
        assert (download.urls, download.name, download.md5) == ((theirs.url,), theirs.filename, theirs.tgz_md5)
        assert ours.base == theirs.base_folder
        listed = {name for name, _ in [*theirs.train_list, *theirs.test_list]} | {theirs.meta["filename"]}
        assert {name for names in ours.parts.values() for name in names} == listed


def test_an_unreadable_folder_is_unavailable(root):
    batch = root / "cifar-10-batches-py" / "data_batch_1"
    batch.unlink()
    batch.symlink_to(batch.name)  # a link to itself
    with pytest.raises(Unavailable, match="data_batch_1"):
        variant().load(2)
