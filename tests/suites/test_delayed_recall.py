"""The rule, sample by sample; and what readers without memory, or without order, can know of it."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.tree import DecisionTreeClassifier

from suites.datasets.delayed_recall import DelayedRecall, DelayedRecallOptions, generate

# Content of the published numbers at T = 50: it may not change without a new GENERATOR.
CONTENT_SHA256 = "f0ef309deb09db806d8d955cddbb84621f64ab42bbe8992d2b1b18f630220ce1"
T, K, SHOWN, CHANNELS, DISTRACTORS = 50, 3, 10, 4, 8


def source(**given):
    return DelayedRecall(DelayedRecallOptions(**given))


def arrays(dataset):
    """Spikes ``[n, T, C]`` and labels ``[n]`` through the items, as training sees them."""
    items = [dataset[i] for i in range(len(dataset))]
    return torch.stack([x for x, _ in items]).numpy(), np.array([y for _, y in items])


@pytest.fixture(scope="module")
def splits():
    return DelayedRecall().load(T)


@pytest.fixture(scope="module", params=["train", "test"])
def part(request, splits):
    return arrays(getattr(splits, request.param))


def symbols(spikes):
    """The symbol that each step shows, ``-1`` for none, ``[n, T]``."""
    groups = spikes[:, :, : K * CHANNELS].reshape(*spikes.shape[:2], K, CHANNELS)
    assert np.isin(groups.sum(-1), (0, CHANNELS)).all(), "the channels of a symbol spike together"
    shown = groups[..., 0]
    assert (shown.sum(-1) <= 1).all(), "one symbol at a time"
    return np.where(shown.any(-1), shown.argmax(-1), -1)


def test_the_content_is_fixed(splits):
    assert splits.sha256 == CONTENT_SHA256
    assert splits.details == {"generator": 1, "delay": 30}
    assert (len(splits.train), len(splits.test)) == (1800, 450)


def test_every_sample_follows_the_rule(part):
    seen = symbols(part[0])
    assert (seen[:, :SHOWN] == seen[:, :1]).all()
    assert (seen[:, SHOWN:-SHOWN] == -1).all()
    assert (seen[:, -SHOWN:] == seen[:, -1:]).all()
    assert (seen[:, [0, -1]] >= 0).all()
    assert np.array_equal((seen[:, 0] - seen[:, -1]) % K, part[1])


def test_all_pairs_are_equally_frequent(part):
    seen = symbols(part[0])
    counts = np.bincount(seen[:, 0] * K + seen[:, -1], minlength=K * K)
    assert (counts == len(part[1]) // K**2).all()


def test_distractors_spike_at_their_rate_whatever_the_class(part):
    noise = part[0][:, :, K * CHANNELS :]
    assert noise.shape[2] == DISTRACTORS
    assert set(np.unique(noise)) == {0.0, 1.0}
    for label in range(K):
        draws = noise[part[1] == label]
        assert draws.mean() == pytest.approx(0.1, abs=4 * (0.09 / draws.size) ** 0.5)


def test_train_and_test_differ(splits):
    one, other = (arrays(getattr(splits, name))[0][:450] for name in ("train", "test"))
    assert not (one == other).all((1, 2)).any()


def test_a_reader_of_the_symbol_of_one_step_is_at_chance(part):
    seen = symbols(part[0])
    for step in range(T):
        for symbol in np.unique(seen[:, step]):
            classes = np.bincount(part[1][seen[:, step] == symbol], minlength=K)
            assert (classes == classes[0]).all()


def test_a_learnt_reader_of_one_step_is_at_chance_and_one_of_both_ends_is_not(splits):
    (x, y), (x_test, y_test) = arrays(splits.train), arrays(splits.test)
    for step in (0, T // 2, T - 1):
        reader = DecisionTreeClassifier(max_depth=8, random_state=0).fit(x[:, step], y)
        assert reader.score(x_test[:, step], y_test) == pytest.approx(1 / K, abs=0.09)  # four standard deviations
    ends = lambda a: a[:, [0, T - 1], : K * CHANNELS].reshape(len(a), -1)  # noqa: E731
    assert DecisionTreeClassifier(random_state=0).fit(ends(x), y).score(ends(x_test), y_test) == 1.0


@pytest.mark.parametrize(("classes", "best"), [(2, 1.0), (3, 2 / 3), (4, 3 / 4), (5, 3 / 5)])
def test_the_best_reader_of_spike_counts(classes, best):
    options = DelayedRecallOptions(symbols=classes, distractors=0)
    spikes, labels = generate(options, 20, "test", classes**2 * 2)
    counts = spikes.sum(1)
    right = 0
    for seen in np.unique(counts, axis=0):
        right += np.bincount(labels[(counts == seen).all(1)]).max()
    assert right / len(labels) == pytest.approx(best)


def test_longer_sequences_have_a_longer_delay():
    x, _ = DelayedRecall().load(80).train[0]
    seen = symbols(x.numpy()[None])[0]
    assert (seen == -1).sum() == 60


def test_a_part_starts_like_the_whole_and_another_seed_has_other_noise():
    whole, part, other = DelayedRecall().load(20), source(n_train=90).load(20), source(data_seed=1).load(20)
    assert all(torch.equal(part.train[i][0], whole.train[i][0]) for i in range(90))
    assert not torch.equal(other.train[0][0], whole.train[0][0])
    assert other.train[0][1] == whole.train[0][1]
    assert len({whole.sha256, part.sha256, other.sha256}) == 3


def test_info_says_what_load_gives_and_that_it_is_generated(splits):
    info = DelayedRecall().info()
    x, _ = splits.train[0]
    assert (info.sample, info.classes, info.static) == (tuple(x.shape[1:]), K, False)
    assert x.dtype == torch.float32
    assert "generated from a rule" in info.source
    assert "no published numbers" in info.variant
    assert source(symbols=5, channels=2, distractors=1).info().sample == (11,)


def test_drawing_leaves_the_global_generators_alone():
    numbers, state = np.random.get_state()[1].copy(), torch.get_rng_state()
    DelayedRecall().load(20)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numbers)


def test_no_distractors_and_certain_ones():
    assert source(distractors=0).load(20).train[0][0].shape == (20, 12)
    certain = source(rate=1.0, distractors=2).load(20).train[0][0]
    assert certain[:, 12:].eq(1).all()


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="two symbols of 10 steps need T >= 20, not 19"):
        DelayedRecall().load(19)


@pytest.mark.parametrize("given", [{"symbols": 1}, {"shown": 0}, {"rate": 1.5}, {"n_test": 0}, {"delay": 3}])
def test_wrong_options_are_refused(given):
    with pytest.raises(ValidationError):
        DelayedRecallOptions(**given)
