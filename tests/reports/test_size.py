"""A page of a thousand records stays small, and quick to make."""

import itertools
import time

import pytest

from harness.spec import Ref
from reports.about import About
from reports.page import Suite, render
from tests.reports import builders as b

BYTES, SECONDS = 5_000_000, 40
"""Twice the processor seconds that it took on a slow two-core machine with others at work."""


@pytest.mark.slow
def test_a_thousand_records(tmp_path):
    more = [b.Invented(Ref(name=f"more{i}"), 0.4 + 0.05 * i, False, 1 + i / 10, 0.01, 1e-7) for i in range(5)]
    nets, data = [Ref(name=f"net{i}") for i in range(4)], [Ref(name=f"data{i}") for i in range(2)]
    cells = itertools.product([*b.METHODS, *more], nets, data, (4, 8, 16, 32), (0, 1, 2))
    records = [b.record(m, i, model=net, data=d, T=T, seed=s) for i, (m, net, d, T, s) in enumerate(cells)]
    assert len(records) > 1_000
    begin = time.process_time()
    html = render(Suite("big", b.items(records, tmp_path), 0, About("big")), tmp_path)
    assert len(html.encode()) < BYTES
    assert time.process_time() - begin < SECONDS
