"""Statistics against values computed by hand (t quantiles from the table: 12.706, 4.303, 3.182 for 1, 2, 3 degrees)."""

import pytest

from harness.stats import Interval, equivalence, paired_difference, t_interval


def test_interval_of_four_values():
    # mean 2.5, deviation sqrt(5/3) = 1.29099, half width 3.182 * 1.29099 / 2 = 2.0543
    interval = t_interval([1, 2, 3, 4])
    assert interval is not None
    assert interval.mean == 2.5
    assert interval.half == pytest.approx(2.0543, abs=2e-4)
    assert (interval.low, interval.high) == pytest.approx((0.4457, 4.5543), abs=2e-4)
    assert interval.n == 4


def test_interval_of_two_values():
    # deviation 1/sqrt(2), half width 12.706 * 0.5
    interval = t_interval([0.0, 1.0])
    assert interval is not None
    assert interval.half == pytest.approx(6.353, abs=1e-3)


def test_single_value_has_no_interval():
    assert t_interval([0.9]) == Interval(0.9, None, None, 1)
    assert Interval(0.9, None, None, 1).half is None


def test_no_values():
    assert t_interval([]) is None


def test_pairs_only_seeds_of_both():
    # differences 0.1, 0.2, 0.3: mean 0.2, deviation 0.1, half width 4.303 * 0.1 / sqrt(3) = 0.24843
    difference = paired_difference({0: 1.1, 1: 1.2, 2: 1.3, 9: 5.0}, {0: 1.0, 1: 1.0, 2: 1.0, 7: 0.0})
    assert difference is not None
    assert difference.n == 3
    assert difference.mean == pytest.approx(0.2)
    assert difference.half == pytest.approx(0.24843, abs=1e-4)


def test_pairing_removes_what_seeds_share():
    ours, theirs = {0: 0.50, 1: 0.90}, {0: 0.49, 1: 0.89}
    difference = paired_difference(ours, theirs)
    assert difference is not None
    assert difference.half == pytest.approx(0.0, abs=1e-12)


def test_nothing_to_pair():
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.005, 0.005, "equivalent"),
        (0.001, 0.009, "equivalent"),
        (-0.01, 0.01, "equivalent"),
        (0.001, 0.02, "different"),
        (-0.03, -0.02, "different"),
        (-0.02, 0.005, "undecided"),
        (None, None, "undecided"),
    ],
)
def test_equivalence_at_one_point(low, high, verdict):
    assert equivalence(Interval(0.0, low, high, 2)) == verdict
