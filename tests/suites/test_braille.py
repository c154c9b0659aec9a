import numpy as np
import pytest
import torch

from suites.datasets.braille import Braille
from suites.datasets.integrity import Damaged, Missing
from tests.suites import datafiles
from tests.suites.datafiles import snapshot


@pytest.fixture
def root(empty):
    datafiles.braille(empty, samples=135)
    return empty


def variant(**options):
    return Braille(Braille.options(allow_variant=True, **options))


def test_touches_are_the_files_values(root):
    splits = variant().load(76)
    x, y = splits.train[0]
    with np.load(root / "braille_letters.npz") as file:
        values, labels = file["x"], file["y"]
    matches = np.flatnonzero((values == np.rint(x.numpy() * 255)).all((1, 2)))
    assert [labels[i] for i in matches] == [y]
    assert (x.shape, x.dtype) == ((76, *variant().info().sample), torch.float32)


def test_a_fifth_of_each_class_is_test(root):
    splits = variant().load(76)
    assert (len(splits.train), len(splits.test)) == (108, 27)
    assert sorted(splits.test.labels) == list(range(27))
    assert variant(split_seed=1).load(76).details["split_sha256"] != splits.details["split_sha256"]


def test_a_subset_keeps_to_its_split(root):
    whole, part = variant().load(76), variant(n_train=27, n_test=5).load(76)
    assert sorted(part.train.labels) == list(range(27))
    assert len(part.test) == 5
    known = {whole.train[i][0].sum().item() for i in range(108)}
    assert all(part.train[i][0].sum().item() in known for i in range(27))


def test_the_number_of_steps_is_given(root):
    with pytest.raises(ValueError, match="T must be 76, not 10"):
        variant().load(10)


def test_other_content_is_refused_unless_told(root):
    before = snapshot(root)
    with pytest.raises(Damaged, match="another content than the known conversion"):
        Braille().load(76)
    assert variant().load(76).details["variant"].startswith("another content")
    assert Braille().status().state == "damaged"
    assert snapshot(root) == before


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive"], ids=["empty", "torn"])
def test_a_damaged_file_is_named(root, content):
    (root / "braille_letters.npz").write_bytes(content)
    with pytest.raises(Damaged, match=r"braille_letters\.npz cannot be read"):
        variant().load(76)


def test_arrays_of_another_shape_are_refused(root):
    np.savez(root / "braille_letters.npz", x=np.zeros((5, 75, 12), dtype=np.uint8), y=np.zeros(5, dtype=int))
    with pytest.raises(Damaged, match=r"x uint8 \(5, 75, 12\)"):
        variant().load(76)


def test_a_missing_file_says_where_it_goes(empty):
    with pytest.raises(Missing) as caught:
        Braille().fetch()
    assert f"put braille_letters.npz with the arrays x [n, 76, 12] uint8 and y [n] into {empty}" in str(caught.value)
    assert Braille().status().state == "missing"
