"""The search for the largest size that fits."""

from hypothesis import given
from hypothesis import strategies as st

from harness.plan.search import Largest, largest

SIZES = st.integers(1, 10**4)


class Counted:
    def __init__(self, peak):
        self.peak, self.sizes = peak, []

    def __call__(self, size):
        self.sizes.append(size)
        return self.peak(size)


def edge(peak, available, limit):
    return max((size for size in range(1, limit + 1) if peak(size) <= available), default=0)


@given(st.integers(0, 10**9), st.integers(1, 10**7), SIZES, st.integers(0, 10**11))
def test_an_affine_peak_is_found_exactly_in_four_predictions(fixed, slope, start, available):
    peak = Counted(lambda size: fixed + slope * size)
    found = largest(peak, available, {start: fixed + slope * start}, fixed, limit=2**40)
    assert found == Largest(max(0, (available - fixed) // slope))
    assert len(peak.sizes) <= 4
    assert start not in peak.sizes


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=200), st.data(), st.integers(-10, 10**5))
def test_the_edge_of_any_monotone_peak_is_found(steps, data, available):
    sums = [sum(steps[: i + 1]) for i in range(len(steps))]
    limit = len(sums)
    start = data.draw(st.integers(1, limit))
    peak = Counted(lambda size: sums[size - 1])
    found = largest(peak, available, {start: sums[start - 1]}, limit=limit)
    assert found.value == edge(peak.peak, available, limit)
    assert found.at_least == (found.value == limit)
    assert len(peak.sizes) == len(set(peak.sizes)), "a size was predicted twice"


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=100), st.data(), st.integers(0, 10**5), st.integers(1, 4))
def test_after_the_last_try_the_answer_still_fits(steps, data, available, tries):
    sums = [sum(steps[: i + 1]) for i in range(len(steps))]
    start = data.draw(st.integers(1, len(sums)))
    found = largest(lambda size: sums[size - 1], available, {start: sums[start - 1]}, limit=len(sums), tries=tries)
    best = edge(lambda size: sums[size - 1], available, len(sums))
    assert found.value <= best
    assert found.value == best or found.at_least
    if found.value:
        assert sums[found.value - 1] <= available


@given(st.integers(0, 10**6), st.integers(1, 10**4), st.integers(1, 50), st.integers(10**6, 10**9))
def test_beyond_what_is_worth_predicting_the_answer_is_on_the_line(fixed, slope, start, available):
    far = 2 * start
    peak = Counted(lambda size: fixed + slope * size)
    # the guess at the fixed part is wrong on purpose: a second prediction has to correct it
    found = largest(peak, available, {start: fixed + slope * start}, fixed // 2, limit=2**40, far=far)
    assert all(size <= max(far, 2) for size in peak.sizes)
    true = max(0, (available - fixed) // slope)
    if not found.verified:
        assert found.value == true
        assert str(found) == f"~{true}"
    else:
        assert found.value == true


@given(st.integers(0, 10**6), st.integers(1, 10**4), st.integers(1, 50), st.integers(0, 10**9))
def test_a_straight_peak_needs_no_prediction_above_the_edge(fixed, slope, start, available):
    peak = Counted(lambda size: fixed + slope * size)
    found = largest(peak, available, {start: fixed + slope * start}, fixed, limit=2**40, straight=True)
    assert found.value == max(0, (available - fixed) // slope)


def test_a_flat_peak_ends_at_the_limit_and_says_so():
    found = largest(lambda size: 7, 8, {4: 7}, 7, limit=64)
    assert (found.value, found.at_least, str(found)) == (64, True, "64+")


def test_nothing_fits():
    assert str(largest(lambda size: 100 + size, 50, {4: 104}, 100)) == "0"
