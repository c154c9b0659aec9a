import gzip
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from suites.datasets.integrity import Damaged, Missing
from suites.datasets.mnist import MNIST, NAMES, FashionMNIST, PermutedMNIST, permutation
from suites.datasets.root import sha256_arrays
from suites.datasets.static import torchvision_sets
from tests.suites import datafiles
from tests.suites.datafiles import md5, snapshot

# The order of the pixels under seed 0: numbers on psmnist rest on it.
PERMUTATION_SHA256 = "dcf7665697f60dfa0c446d241007592811abe7cdf3e767f0200d332b06a29372"


@pytest.fixture
def made(empty):
    return datafiles.mnist(empty)


@pytest.fixture
def canonical(empty, made, monkeypatch):
    """The small files are the published ones."""
    folder = empty / "MNIST" / "raw"
    monkeypatch.setattr(MNIST, "downloads", tuple(replace(d, md5=md5(folder / d.name)) for d in MNIST.downloads))
    return made


def variant(kind=MNIST, **options):
    return kind(kind.options(allow_variant=True, **options))


def test_published_archives_are_read_without_unpacking_them_into_the_folder(empty, canonical):
    before = snapshot(empty)
    source = MNIST(MNIST.options(normalise=False))
    source.prepare(2)
    splits = source.load(2)
    images, labels = canonical["t10k"]
    x, y = splits.test[7]
    assert np.array_equal(np.rint(x[1, 0].numpy() * 255), images[7])
    assert y == labels[7]
    assert (len(splits.train), len(splits.test)) == (30, 20)
    assert "variant" not in splits.details
    assert source.status().state == "present"
    assert snapshot(empty) == before


def test_other_archives_are_refused_unless_told(empty, made):
    before = snapshot(empty)
    with pytest.raises(Damaged, match=r"train-images-idx3-ubyte\.gz .*f68b3c2dcbeaaa9fbdd348bbdeb94873"):
        MNIST().load(2)
    assert variant().load(2).details["variant"].startswith("checksums differ")
    assert snapshot(empty) == before


def test_unpacked_files_without_archives_are_a_variant(empty, made):
    folder = empty / "MNIST" / "raw"
    for name in NAMES:
        packed = folder / f"{name}.gz"
        (folder / name).write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    with pytest.raises(Damaged, match="the unpacked files only"):
        MNIST().load(2)
    splits = variant().load(2)
    assert splits.details["variant"] == "unpacked files without the archives that have checksums"
    assert len(splits.train) == 30


def test_a_missing_archive_is_named(empty, made):
    (empty / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(Missing, match=r"t10k-labels-idx1-ubyte\.gz is missing"):
        variant().load(2)


def test_a_truncated_archive_is_damaged_even_as_a_variant(empty, made):
    path = empty / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:5000])
    before = snapshot(empty)
    with pytest.raises(Damaged, match="cannot be read"):
        variant().load(2)
    assert snapshot(empty) == before


def test_images_of_another_size_are_refused(empty, made):
    path = empty / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">IIII", 2051, 20, 8, 8) + bytes(20 * 64)))
    with pytest.raises(Damaged, match=r"shape \(1, 8, 8\), expected \(1, 28, 28\)"):
        variant().load(2)


def test_clothes_come_from_a_folder_of_their_own(empty):
    datafiles.mnist(empty, "FashionMNIST")
    assert len(variant(FashionMNIST).load(2).test) == 20
    with pytest.raises(Missing):
        variant().load(2)


def test_the_permutation_never_changes():
    assert sha256_arrays({"order": permutation(0, 784)}) == PERMUTATION_SHA256
    assert sorted(permutation(0, 784)) == list(range(784))
    assert np.array_equal(permutation(None, 784), np.arange(784))


def test_pixels_come_in_the_permuted_order(made):
    images = variant().load(1).train
    pixels, label = variant(PermutedMNIST).load(784).train[3]
    assert pixels.shape == (784, *PermutedMNIST().info().sample)
    assert torch.equal(pixels[:, 0], images[3][0].flatten()[torch.from_numpy(permutation(0, 784))])
    assert label == images[3][1]
    rows = variant(PermutedMNIST, permutation_seed=None).load(784)
    assert torch.equal(rows.train[3][0][:, 0], images[3][0].flatten())
    assert rows.sha256 != variant(PermutedMNIST).load(784).sha256
    with pytest.raises(ValueError, match="T must be 784, not 28"):
        variant(PermutedMNIST).load(28)


def test_addresses_and_checksums_are_torchvisions():
    for ours in (MNIST, FashionMNIST):
        theirs = getattr(torchvision_sets(), ours.loader)
        assert [(d.name, d.md5) for d in ours.downloads] == list(theirs.resources)
        for download in ours.downloads:
            assert download.urls == tuple(f"{mirror}{download.name}" for mirror in theirs.mirrors)
