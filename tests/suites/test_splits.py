import numpy as np
import pytest

from suites.datasets.root import sha256_arrays
from suites.datasets.splits import hashed_order, stratified, take

LABELS = np.arange(1000) % 10
SPLIT_SHA256 = "c550bda90ee52c21136b2adf4cd903076204a5cbc280a40c4710451d8f7c689d"


def test_a_hashed_order_is_a_permutation_that_follows_from_its_key():
    order = hashed_order(100, "a")
    assert sorted(order) == list(range(100))
    assert np.array_equal(order, hashed_order(100, "a"))
    assert not np.array_equal(order, hashed_order(100, "b"))


def test_a_stratified_split_has_the_same_share_of_every_class():
    split = stratified(LABELS, 0.1, 0)
    assert np.bincount(LABELS[split["test"]]).tolist() == [10] * 10
    assert sorted([*split["train"], *split["test"]]) == list(range(1000))


def test_the_split_of_a_seed_never_changes():
    # What published numbers on CIFAR10-DVS rest on: 10,000 recordings, sorted by class.
    split = stratified(np.repeat(np.arange(10), 1000), 0.1, 0)
    assert sha256_arrays(split) == SPLIT_SHA256
    assert sha256_arrays(stratified(np.repeat(np.arange(10), 1000), 0.1, 1)) != SPLIT_SHA256


@pytest.mark.parametrize("count", [10, 25, 990])
def test_a_subset_takes_the_classes_in_turn(count):
    chosen = take(LABELS, count, 0)
    assert len(set(chosen)) == count
    classes = np.bincount(LABELS[chosen], minlength=10)
    assert classes.max() - classes.min() <= 1


def test_a_subset_is_the_beginning_of_a_larger_one():
    assert np.array_equal(take(LABELS, 20, 0), take(LABELS, 50, 0)[:20])


def test_another_seed_takes_others():
    assert set(take(LABELS, 50, 0)) != set(take(LABELS, 50, 1))


def test_without_a_limit_all_are_taken_in_their_order():
    assert np.array_equal(take(LABELS, None, 0), np.arange(1000))
    assert np.array_equal(take(LABELS, 1001, 0), np.arange(1000))


def test_classes_of_different_size_all_get_their_turn():
    labels = np.array([0] * 97 + [1] * 3)
    assert np.bincount(labels[take(labels, 10, 0)]).tolist() == [7, 3]
