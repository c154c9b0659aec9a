"""How long a large store takes to open. Budget: 10,000 records in less than 3 s.

Processor time: what else the machine does is no property of the store.
"""

import time

import pytest

from harness.store import Store
from harness.store.recordfile import encode
from tests.harness.samples import sample_record, sample_spec

RECORDS = 10_000
BUDGET_S = 3.0

pytestmark = pytest.mark.benchmark(timer=time.process_time)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """10,000 records of realistic size, each in a cell of its own; no fsync, which is not measured."""
    root = tmp_path_factory.mktemp("store")
    for index in range(RECORDS):
        record = sample_record(run_id=f"20261121T065101Z-{index:08x}", spec=sample_spec(seed=index))
        folder = root / record.suite / record.cell
        folder.mkdir(parents=True)
        data = encode(record)
        assert 6_000 < len(data) < 16_000
        (folder / f"{record.run_id}.json").write_bytes(data)
    return Store(root)


def fastest(benchmark):
    return benchmark.stats.stats.min


def test_load_10000_records(benchmark, store):
    """From files to the table that reports and users work on."""
    table = benchmark.pedantic(store.frame, rounds=3)
    assert len(table) == RECORDS
    assert fastest(benchmark) < BUDGET_S


def test_finished_of_10000_cells(benchmark, store):
    found = benchmark.pedantic(store.finished, ("quick",), rounds=3)
    assert len(found) == RECORDS
    assert fastest(benchmark) < BUDGET_S


@pytest.mark.benchmark(timer=time.perf_counter)
def test_write_one_record(benchmark, tmp_path):
    """With everything that durability costs: two fsyncs, and a series beside it."""
    store, series = Store(tmp_path), {"timeline": [(i, i * 512) for i in range(20_000)]}
    names = iter(range(1_000_000))
    path = benchmark(lambda: store.write(sample_record(run_id=f"r{next(names)}"), series))
    assert path.stat().st_size > 6_000
