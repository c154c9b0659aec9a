import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.datasets import load_digits

from suites.datasets import digit_source
from suites.datasets.digit_source import N_TEST, N_TRAIN, load_images, split_indices
from suites.datasets.digits import Digits, DigitsOptions
from suites.datasets.root import sha256_arrays

# Content and split of the published numbers: neither may change without a new name.
CONTENT_SHA256 = "e086f1b0f5e0f0ecce6569ce44ef7c6db79a0cef4a2362e3b27b120ee254f785"
SPLIT_SHA256 = "9a0e0fc5b665a749ace965adda9d988ce383f5081f6fe2be63d99f3cf2454aa5"

pytestmark = pytest.mark.usefixtures("data")


def test_images_and_labels_are_scikit_learns():
    images, labels = load_images()
    assert np.array_equal(images * 16, load_digits().images)
    assert np.array_equal(labels, load_digits().target)
    assert (images.dtype, images.min(), images.max()) == (np.float32, 0.0, 1.0)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_the_split_is_fixed():
    splits = Digits().load(1)
    assert splits.sha256 == CONTENT_SHA256
    assert splits.details["split_sha256"] == SPLIT_SHA256
    assert splits.details["split_seed"] == 0


def test_the_split_is_stratified_complete_and_without_overlap():
    _, labels = load_images()
    split = split_indices(labels)
    assert (len(split["train"]), len(split["test"])) == (N_TRAIN, N_TEST)
    assert sorted([*split["train"], *split["test"]]) == list(range(1797))
    share = np.bincount(labels[split["test"]]) / np.bincount(labels)
    assert np.abs(share - 0.2).max() < 0.004


def test_another_seed_gives_another_split():
    _, labels = load_images()
    assert sha256_arrays(split_indices(labels, seed=1)) != SPLIT_SHA256


def test_the_first_samples_of_a_part_mix_the_classes():
    _, labels = load_images()
    assert len(set(labels[split_indices(labels)["train"][:100]].tolist())) == 10


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_direct_encoding_repeats_the_frame_without_copying_it(steps):
    splits = Digits().load(steps)
    x, y = splits.train[5]
    images, labels = load_images()
    index = split_indices(labels)["train"][5]
    assert x.shape == (steps, 1, 8, 8)
    assert all(torch.equal(step[0], torch.from_numpy(images[index].copy())) for step in x)
    assert y == labels[index]
    assert x[-1].data_ptr() == x[0].data_ptr()
    batch, targets = next(iter(torch.utils.data.DataLoader(splits.test, batch_size=3)))
    assert batch.is_contiguous()
    assert batch.shape == (3, steps, 1, 8, 8)
    assert targets.dtype == torch.int64


def test_info_says_what_load_gives():
    info = Digits().info()
    x, _ = Digits().load(2).train[0]
    assert (info.sample, info.classes, info.static, info.variant) == (tuple(x.shape[1:]), 10, True, None)
    assert "scikit-learn" in info.source


def test_rate_encoding_spikes_in_proportion_to_brightness():
    source = Digits(DigitsOptions(encoding="rate"))
    assert source.info().static is False
    splits, frames = source.load(400), Digits().load(1)
    x, y = splits.test[7]
    image, label = frames.test[7]
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert y == label
    assert (x.mean(0) - image[0]).abs().max() < 0.1  # four standard deviations of 400 draws
    assert x[:, 0, 0, 0].sum() == 0  # black never spikes
    assert x.mean(0)[image[0] == 1].eq(1).all()  # white always does


def test_rate_encoding_is_fixed_for_test_and_fresh_for_training():
    load = lambda seed: Digits(DigitsOptions(encoding="rate", encoding_seed=seed)).load(8)  # noqa: E731
    one, same, other = load(0), load(0), load(1)
    assert torch.equal(one.test[3][0], one.test[3][0])
    assert torch.equal(one.test[3][0], same.test[3][0])
    assert not torch.equal(one.test[3][0], other.test[3][0])
    torch.manual_seed(0)
    first, second = one.train[3][0], one.train[3][0]
    torch.manual_seed(0)
    assert torch.equal(first, one.train[3][0])
    assert not torch.equal(first, second)


def test_limits_take_the_first_samples_and_are_marked():
    source = Digits(DigitsOptions(n_train=100, n_test=20))
    part, whole = source.load(1), Digits().load(1)
    assert (len(part.train), len(part.test)) == (100, 20)
    assert all(torch.equal(part.train[i][0], whole.train[i][0]) for i in range(100))
    assert source.info().variant == "first 100 of train; first 20 of test"
    assert part.sha256 == whole.sha256
    assert part.details["split_sha256"] != whole.details["split_sha256"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_train": N_TRAIN + 1}, "less than or equal to 1438"),
        ({"n_test": 0}, "greater than 0"),
        ({"encoding": "latency"}, "'direct' or 'rate'"),
    ],
)
def test_wrong_options_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        DigitsOptions(**given)


def test_the_digits_work_without_a_data_folder(no_folder):
    assert Digits().load(1).sha256 == CONTENT_SHA256


def test_a_prepared_copy_spares_scikit_learn(empty, monkeypatch):
    Digits().prepare(1)
    digit_source.load_images.cache_clear()
    monkeypatch.setattr(digit_source, "_from_sklearn", lambda: pytest.fail("imported scikit-learn"))
    assert Digits().load(1).sha256 == CONTENT_SHA256
