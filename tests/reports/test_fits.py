"""What fits: read off peaks, interpolated between them, and no further."""

import pytest

from reports.about import About
from reports.fits import CARDS, GIB, fits, largest
from reports.page import Suite
from tests.harness.samples import sample_memory
from tests.reports import builders as b

PEAKS = {1: 2 * GIB, 4: 8 * GIB, 16: 32 * GIB}


@pytest.mark.parametrize(
    ("limit", "answer"),
    [(1, (0, True)), (2, (1, True)), (8, (4, True)), (7.99, (3, False)), (20, (10, False)), (32, (16, True)),
     (99, (16, True))],
)  # fmt: skip
def test_largest(limit, answer):
    assert largest(PEAKS, int(limit * GIB)) == answer


def test_the_interpolated_size_fits_where_bytes_are_linear():
    peaks = {size: GIB + size * 100 * 2**20 for size in (1, 64, 256)}
    for card in CARDS:
        size, _ = largest(peaks, card * GIB)
        assert GIB + size * 100 * 2**20 <= card * GIB
        assert size == max(peaks) or GIB + (size + 1) * 100 * 2**20 > card * GIB


def test_the_table_of_a_page():
    records = []
    for number, (steps, peak) in enumerate(PEAKS.items()):
        record = b.predicted(b.METHODS[0], number, T=steps)
        records.append(record.model_copy(update={"memory": sample_memory(peak_live_bytes=peak)}))
    suite = Suite(b.SUITE, b.items(records), 0, About(b.SUITE))
    grid = fits(suite.tables, suite.headings)
    (row,) = grid.rows
    assert [cell.text for cell in row] == ["bptt", row[1].text, "T", "1, 4, 16", "4", "12", "\u2265 16"]
    assert "T =" not in row[1].text
    assert "interpolated" in row[5].title
    assert row[4].item.record.spec.T == 4


def test_two_sizes_are_too_few():
    items = b.items(b.predicted(b.METHODS[0], number, T=steps) for number, steps in enumerate((1, 4)))
    suite = Suite(b.SUITE, items, 0, About(b.SUITE))
    assert not fits(suite.tables, suite.headings).rows
