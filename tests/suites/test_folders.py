import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from suites.datasets.folders import ImageNet, Imagenette, TinyImageNet
from suites.datasets.integrity import Damaged, Missing
from suites.datasets.static import torchvision_sets
from tests.suites import datafiles
from tests.suites.datafiles import md5, pack, snapshot, touch_later


@pytest.fixture
def root(empty):
    """Ten classes, three photographs of each for training and two for test."""
    datafiles.photographs(empty / Imagenette.base / "train", 10, 3)
    datafiles.photographs(empty / Imagenette.base / "val", 10, 2)
    return empty


@pytest.fixture
def canonical(root, monkeypatch):
    """The small folder has as many files as were published."""
    monkeypatch.setattr(Imagenette, "counts", {"train": 30, "test": 20})
    return root


def small(**options):
    return Imagenette(Imagenette.options(**{"size": 16, **options}))


def test_photographs_become_square_frames(canonical):
    splits = small().load(3)
    x, y = splits.train[4]
    assert (x.shape, x.dtype, y) == ((3, 3, 16, 16), torch.float32, 1)
    assert (len(splits.train), len(splits.test)) == (30, 20)
    assert sorted({splits.test[i][1] for i in range(20)}) == list(range(10))
    assert "variant" not in splits.details
    assert small().status().state == "present"


def test_a_photograph_of_the_right_size_is_left_as_it_is(empty, monkeypatch):
    for part in ("train", "val"):
        datafiles.photographs(empty / Imagenette.base / part, 10, 1, size=(16, 16))
    monkeypatch.setattr(Imagenette, "counts", {"train": 10, "test": 10})
    x, _ = small(normalise=False).load(1).test[0]
    path = sorted((empty / Imagenette.base / "val").rglob("*.JPEG"))[0]
    assert torch.equal((x[0] * 255).round().to(torch.uint8).permute(1, 2, 0).flatten(), pixels(path))


def pixels(path):
    return torch.tensor(list(Image.open(path).tobytes()), dtype=torch.uint8)


def test_the_augmentation_crops_training_images_only(canonical):
    splits = small(augment="resized-crop-flip").load(1)
    torch.manual_seed(0)
    assert not torch.equal(splits.train[0][0], splits.train[0][0])
    assert torch.equal(splits.test[0][0], splits.test[0][0])
    assert splits.train[0][0].shape == (1, 3, 16, 16)


def test_fewer_files_than_published_are_refused_unless_told(root):
    before = snapshot(root)
    with pytest.raises(Damaged, match=r"30 of 9469 files in train, 20 of 3925 files in val"):
        small().load(1)
    splits = small(allow_variant=True).load(1)
    assert splits.details["variant"] == "30 of 9469 files in train, 20 of 3925 files in val"
    assert snapshot(root) == before


def test_a_missing_class_folder_is_refused(canonical):
    shutil.rmtree(canonical / Imagenette.base / "train" / "n00000004")
    before = snapshot(canonical)
    with pytest.raises(Damaged, match="has 9 class folders, expected 10"):
        small(allow_variant=True).load(1)
    assert snapshot(canonical) == before


def test_an_empty_class_folder_is_named(canonical):
    folder = canonical / Imagenette.base / "train" / "n00000004"
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(Damaged, match=r"class folders n00000004 in .* are empty"):
        small(allow_variant=True).load(1)


def test_class_folders_of_other_names_in_the_test_split_are_refused(canonical):
    folder = canonical / Imagenette.base / "val" / "n00000004"
    folder.rename(folder.with_name("n00000099"))
    with pytest.raises(Damaged, match="class folders of train and val differ"):
        small().load(1)


def test_an_empty_file_of_a_half_extracted_folder_is_named(canonical):
    path = canonical / Imagenette.base / "train" / "n00000002" / "n00000002_1.JPEG"
    path.write_bytes(b"")
    with pytest.raises(Damaged, match=r"n00000002_1\.JPEG is empty"):
        small(allow_variant=True).load(1)


@pytest.mark.parametrize("content", [b"<html>404</html>", None])
def test_a_damaged_photograph_is_named_when_it_is_asked_for(canonical, content):
    path = canonical / Imagenette.base / "train" / "n00000002" / "n00000002_1.JPEG"
    path.write_bytes(content or path.read_bytes()[:-100])
    splits, place = small().load(1), sorted(path.parent.parent.rglob("*.JPEG")).index(path)
    splits.train[place - 1]
    before = snapshot(canonical)
    with pytest.raises(Damaged, match=r"n00000002_1\.JPEG cannot be read \(.*nothing was deleted"):
        splits.train[place]
    assert snapshot(canonical) == before


def test_a_link_that_leads_nowhere_is_named(canonical):
    path = canonical / Imagenette.base / "train" / "n00000002" / "n00000002_1.JPEG"
    path.unlink()
    path.symlink_to(canonical / "not mounted" / path.name)
    with pytest.raises(Damaged, match=r"the link .*n00000002_1\.JPEG leads nowhere"):
        small(allow_variant=True).load(1)
    assert small().status().state == "damaged"


def test_photographs_on_a_read_only_share_can_be_used(canonical):
    (canonical / "cache").write_text("a file where the folder would be: no listing can be kept, not even by root")
    assert len(small().load(1).train) == 30


def test_an_empty_split_is_refused(root):
    shutil.rmtree(root / Imagenette.base / "val")
    (root / Imagenette.base / "val").mkdir()
    with pytest.raises(Damaged, match=r"the test split in .* is empty"):
        small(allow_variant=True).load(1)


def test_a_missing_split_is_missing(root):
    shutil.rmtree(root / Imagenette.base / "val")
    with pytest.raises(Missing, match="val is missing"):
        small(allow_variant=True).load(1)
    assert small().status().state == "missing"


def test_the_listing_is_kept_until_a_folder_changes(canonical):
    first = small().load(1)
    assert len(list((canonical / "cache" / "imagenette").iterdir())) == 1
    path = canonical / Imagenette.base / "train" / "n00000002" / "n00000002_9.JPEG"
    shutil.copy(path.with_name("n00000002_1.JPEG"), path)
    touch_later(path.parent)
    with pytest.raises(Damaged, match="31 of 30"):
        small().load(1)
    path.unlink()
    touch_later(path.parent)
    touch_later(path.parent)
    assert small().load(1).sha256 == first.sha256


def test_a_damaged_listing_is_made_anew(canonical):
    first = small().load(1)
    (listing,) = (canonical / "cache" / "imagenette").iterdir()
    listing.write_bytes(listing.read_bytes()[:100])
    assert small().load(1).sha256 == first.sha256


def test_an_archive_is_unpacked_when_it_is_the_published_one(canonical, monkeypatch):
    archive = canonical / "imagenette2-160.zip"
    pack(archive, canonical / Imagenette.base, Imagenette.base)
    shutil.rmtree(canonical / Imagenette.base)
    (download,) = Imagenette.downloads
    monkeypatch.setattr(Imagenette, "downloads", (replace(download, name=archive.name),))
    with pytest.raises(Damaged, match=md5(archive)):
        small().load(1)
    monkeypatch.setattr(Imagenette, "downloads", (replace(download, name=archive.name, md5=md5(archive)),))
    assert len(small().load(1).train) == 30


def test_tiny_imagenets_table_of_test_classes_is_read(empty, monkeypatch):
    folder = empty / TinyImageNet.base
    datafiles.photographs(folder / "train", 3, 2, size=(64, 64), below="images")
    datafiles.photographs(folder / "val", 1, 3, size=(64, 64))
    (folder / "val" / "n00000000").rename(folder / "val" / "images")
    rows = [f"n00000000_{i}.JPEG\tn{kind:08d}\t0\t0\t62\t62\n" for i, kind in enumerate((2, 0, 1))]
    (folder / "val" / "val_annotations.txt").write_text("".join(rows))
    monkeypatch.setattr(TinyImageNet, "classes", 3)
    monkeypatch.setattr(TinyImageNet, "counts", {"train": 6, "test": 3})
    splits = TinyImageNet().load(2)
    assert splits.train[0][0].shape == (2, 3, 64, 64)
    assert [splits.test[i][1] for i in range(3)] == [2, 0, 1]
    (folder / "val" / "val_annotations.txt").write_text("".join(rows[:2]))
    (folder / "val" / "images" / "touched").mkdir()
    with pytest.raises(Damaged, match=r"lacks 'n00000000_2\.JPEG'"):
        TinyImageNet().load(2)


def test_imagenet_says_what_to_register_for(empty):
    with pytest.raises(Missing) as caught:
        ImageNet().fetch()
    for word in ("ILSVRC2012_img_train.tar", "image-net.org", str(empty / "imagenet")):
        assert word in str(caught.value)
    assert ImageNet().status().state == "missing"


def test_info_reads_no_file(no_folder):
    assert ImageNet().info().sample == (3, 224, 224)
    assert TinyImageNet().info().sample == (3, 64, 64)
    assert Imagenette().info().sample == (3, 128, 128)
    assert [s().info().classes for s in (ImageNet, TinyImageNet, Imagenette)] == [1000, 200, 10]


def test_addresses_and_checksums_are_torchvisions():
    from torchvision.datasets.imagenet import ARCHIVE_META

    url, digest = torchvision_sets().Imagenette._ARCHIVES["160px"]
    (download,) = Imagenette.downloads
    assert (download.urls, download.md5) == ((url,), digest)
    assert {(d.name, d.md5) for d in ImageNet.downloads} == set(ARCHIVE_META.values())
