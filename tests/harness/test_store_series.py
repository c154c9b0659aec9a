import math

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.store.series import LIMIT, read_series, thin, write_series

NUMBERS = st.lists(st.integers(-1000, 1000) | st.floats(allow_nan=False), max_size=300)
LIMITS = st.integers(4, 60)


@given(points=NUMBERS, limit=LIMITS)
@settings(max_examples=300, deadline=None)
def test_extremes_ends_order_and_limit(points, limit):
    kept = thin(points, limit)
    assert len(kept) <= limit
    if points:
        assert (min(kept), max(kept)) == (min(points), max(points))
        assert (kept[0], kept[-1]) == (points[0], points[-1])
    rest = iter(points)
    assert all(any(point is other for other in rest) for point in kept)


@given(values=st.lists(st.integers(0, 50), min_size=61, max_size=400), limit=LIMITS)
@settings(max_examples=100, deadline=None)
def test_pairs_are_judged_by_their_second(values, limit):
    points = list(enumerate(values))
    kept = thin(points, limit)
    assert max(kept, key=lambda p: p[1])[1] == max(values)
    assert min(kept, key=lambda p: p[1])[1] == min(values)
    assert [x for x, _ in kept] == sorted({x for x, _ in kept})


def test_short_series_stay_as_they_are():
    points = [3.0, 1.0, 2.0]
    assert thin(points) == points
    assert thin(points) is not points
    assert thin([]) == []
    assert len(thin(range(LIMIT))) == LIMIT
    assert LIMIT - 2 <= len(thin(range(LIMIT + 1))) <= LIMIT


def test_a_spike_survives_anywhere():
    for place in range(500):
        points = [0.0] * 500
        points[place] = 1.0
        assert 1.0 in thin(points, 10)


def test_numbers_that_are_none_do_not_hide_extremes():
    points = [math.nan] * 50 + [5.0, -5.0] + [math.nan] * 50
    kept = thin(points, 8)
    assert {5.0, -5.0} <= set(kept)
    assert len(kept) <= 8


def test_limit_below_four():
    with pytest.raises(ValueError, match="at least 4"):
        thin([1, 2, 3], 3)


def test_file_has_one_list_column_a_series(tmp_path):
    file = tmp_path / "r.parquet"
    write_series(file, {"timeline": [(0, 2**53 + 1), (1, 2)], "samples_s": [0.5, 1], "none": []})
    assert pq.read_table(file).column_names == ["timeline", "samples_s", "none"]
    assert read_series(file) == {"timeline": [[0, 2**53 + 1], [1, 2]], "samples_s": [0.5, 1.0], "none": []}


def test_unreadable_files(tmp_path):
    file = tmp_path / "r.parquet"
    with pytest.raises(OSError, match="No such file"):
        read_series(file)
    file.write_bytes(b"PAR1 and nothing")
    with pytest.raises(OSError, match=r"r\.parquet"):
        read_series(file)
    with pytest.raises(ValueError, match="series big"):
        write_series(file, {"big": [2**70]})
