"""What a cell costs beside its measurement: an empty one over the fork server."""

from harness.executors.local import LocalExecutor
from harness.executors.server import ForkServer
from tests.harness import cells

LIMIT_S = 0.3


def test_an_empty_cell_costs_little(benchmark, tmp_path):
    server = ForkServer()
    executor = LocalExecutor(1, entry=cells.entry("empty"), server=server)
    list(executor.run([cells.job(tmp_path)]))  # the server's imports are paid once a run
    outcomes = benchmark.pedantic(lambda: list(executor.run([cells.job(tmp_path)])), rounds=20)
    assert [outcome.exitcode for outcome in outcomes] == [0]
    assert not server.warnings
    assert benchmark.stats.stats.median <= LIMIT_S
