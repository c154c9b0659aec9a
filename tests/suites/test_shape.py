import pytest
import torch
from pydantic import ValidationError

from suites.datasets.shape import Shape, ShapeOptions


def source(**given):
    return Shape(ShapeOptions(**({"sample": (3, 6, 5), "classes": 4} | given)))


def test_items_have_the_declared_shape():
    splits = source(n_train=9, n_test=5).load(7)
    x, y = splits.train[0]
    assert x.shape == (7, 3, 6, 5)
    assert 0 <= y < 4
    assert (len(splits.train), len(splits.test)) == (9, 5)


def test_it_says_that_it_is_synthetic():
    info, splits = source().info(), source().load(1)
    assert (info.sample, info.classes) == ((3, 6, 5), 4)
    assert "synthetic" in info.source
    assert "accuracy means nothing" in info.variant
    assert splits.details["synthetic"] is True


def test_items_are_the_same_each_time_and_differ_from_each_other():
    one, again, other = source().load(2), source().load(2), source(data_seed=1).load(2)
    assert torch.equal(one.train[3][0], again.train[3][0])
    different = [one.train[4][0], one.test[3][0], other.train[3][0]]
    assert not any(torch.equal(one.train[3][0], x) for x in different)
    assert one.sha256 == again.sha256 != other.sha256


def test_drawing_items_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    source().load(2).train[0]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("values", ["uniform", "spikes"])
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_density_is_the_fraction_that_is_not_zero(values, density):
    x, _ = source(sample=(1, 64, 64), values=values, density=density).load(4).train[0]
    assert (x != 0).float().mean().item() == pytest.approx(density, abs=0.02)
    if values == "spikes":
        assert set(x.unique().tolist()) <= {0.0, 1.0}
    else:
        assert 0.4 < x[x != 0].mean() < 0.6


@pytest.mark.parametrize("static", [True, False])
def test_a_static_sample_repeats_its_frame(static):
    built = source(static=static)
    x, _ = built.load(3).train[0]
    assert torch.equal(x[0], x[1]) is static
    assert built.info().static is static


def test_all_classes_occur():
    splits = source().load(1)
    assert {splits.train[i][1] for i in range(8)} == {0, 1, 2, 3}


def test_iterating_ends():
    assert len(list(source(n_train=5).load(1).train)) == 5


@pytest.mark.parametrize(
    "given", [{"sample": ()}, {"sample": (0, 2)}, {"classes": 0}, {"density": 0.0}, {"density": 1.5}, {"values": "x"}]
)
def test_wrong_options_are_refused(given):
    with pytest.raises(ValidationError):
        source(**given)


def test_the_shape_has_to_be_declared():
    with pytest.raises(ValueError, match="needs the options sample"):
        Shape()
