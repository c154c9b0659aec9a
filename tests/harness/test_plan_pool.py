"""Processes that predict: one takes method after method, and what ends it costs the method it was at, and no other."""

import os
import time

import pytest

from harness import registry
from harness.executors.server import ForkServer
from harness.plan import pool
from harness.plan.candidates import evaluate
from harness.plan.planning import Question, build
from harness.plan.predictor import Subject
from harness.plan.size import Budget

NET = {"channels": [4]}
BUDGET = Budget.of("1GiB", 0)


@pytest.fixture(scope="module")
def server():
    made = ForkServer()
    yield made
    made.stop()  # it remembers the plugins of now; later tests install others


def asked():
    return Question("convnet", BUDGET, NET, sample=(1, 8, 8), classes=10, T=3, batch=4).spec()


def refs(*names):
    return [(registry.complete("methods", name, {}, "here"), True) for name in names]


def rows(server, *names, jobs=1, timeout_s=120.0):
    return pool.rows(asked(), refs(*names), BUDGET.available_bytes, server, jobs, timeout_s)


def dies_at_bptt_fused(tasks, answers, spec, available, hardware):
    """:func:`pool.serve`, in a process that ends when it is given one method."""

    class Listening:
        def recv(self):
            group = tasks.recv()
            if "bptt-fused" in group[0][0]:
                os._exit(7)
            return group

    pool.serve(Listening(), answers, spec, available, hardware)


def raises(tasks, answers, spec, available, hardware):
    raise RuntimeError("no model")


def sleeps(tasks, answers, spec, available, hardware):
    time.sleep(600)


@pytest.mark.parametrize("jobs", [1, 3])
def test_rows_are_those_of_this_process_in_the_order_asked(server, jobs):
    spec = asked()
    about = Subject(spec, registry.create("datasets", spec.data).info(), build(spec))
    names = ("checkpoint", "bptt", "sltt", "bptt-fused")
    found = rows(server, *names, jobs=jobs)
    assert [row.method.name for row in found] == list(names)
    for row, (ref, limits) in zip(found, refs(*names), strict=True):
        assert row == evaluate(about, ref, BUDGET.available_bytes, limits)
    assert found[2].reason


def test_a_process_that_dies_takes_one_method_with_it(server, monkeypatch):
    monkeypatch.setattr(pool, "ENTRY", f"{__name__}:dies_at_bptt_fused")
    found = rows(server, "bptt", "bptt-fused", "checkpoint")
    assert found[1].cost is None
    assert "died with exit code 7" in found[1].reason
    assert all(row.cost is not None for row in (found[0], found[2]))


def test_what_stops_every_process_is_every_rows_reason(server, monkeypatch):
    monkeypatch.setattr(pool, "ENTRY", f"{__name__}:raises")
    assert [row.reason for row in rows(server, "bptt", "checkpoint")] == ["RuntimeError: no model"] * 2


def test_a_method_that_takes_too_long_is_left_out_and_says_so(server, monkeypatch):
    monkeypatch.setattr(pool, "ENTRY", f"{__name__}:sleeps")
    found = rows(server, "bptt", "checkpoint", jobs=2, timeout_s=0.2)
    assert [row.reason for row in found] == ["no prediction within 0.2 s; --timeout gives it longer"] * 2
