"""The planner: every budget that is possible is met by the step that runs, and more of it never costs more work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods import _profile as profile
from methods._measure import faking
from methods.streaming import backward, forward
from methods.streaming.costs import modes_of
from methods.streaming.parse import parse
from methods.streaming.plan import SLACK, TOLERANCE, Budget, TooSmall, _Planner, rule_widths
from methods.streaming.unit import Mode, chunks_of
from tests.methods.nets import batch, build, conv, lif, loss, over_time, plif
from tests.methods.test_memory import track
from tests.methods.test_streamed import SEW, Membranes, streamed

PLAIN = (False, torch.bfloat16)


def net() -> Any:
    return build(plif(), middle=lambda c: conv(c, c, lif(), over_time)).train()


class Planned:
    """One planner for all examples: its costs are measured once."""

    def __init__(self, model: Any) -> None:
        x, _ = batch(4, 8)
        with faking() as mode:
            widths = rule_widths(parse(model))
            self.planner = _Planner(model, profile.meta_of(x), loss(), widths, PLAIN, mode)
            self.mode = mode
            self.bptt = self.planner._bptt()
            self.min = self.planner.run(Budget())
            self.least = self.min.smallest_bytes

    def chosen(self, limit: int | None = None, **how: Any) -> Any:
        with self.mode:
            return self.planner.run(Budget(bytes=limit, **how))

    def work(self, modes: Any) -> float:
        with self.mode:
            return sum(self.planner._costs.cost(index, mode).work for index, mode in enumerate(modes))


@pytest.fixture(scope="module", params=["layers", "membranes"])
def planned(request) -> Planned:
    return Planned(net() if request.param == "layers" else build(plif(), middle=Membranes).train())


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.floats(0, 1), st.floats(0, 1))
def test_every_budget_is_met_and_more_of_it_is_never_more_work(planned, one, two):
    span = planned.bptt - planned.least
    low, high = sorted(planned.least + int(part * span) for part in (one, two))
    small, large = planned.chosen(low), planned.chosen(high)
    assert planned.least <= planned.bptt
    assert small.peak_bytes <= low
    assert large.peak_bytes <= high
    assert planned.work(large.modes) <= planned.work(small.modes)


@pytest.mark.parametrize("chunks", [3, 4, 7])
def test_chunks_left_out_under_fake_tensors_change_no_byte(chunks, monkeypatch):
    """Of seven samples: 3 3 1, 2 2 2 1 and seven."""

    def all_run(x, chunks, grows):
        return ((index, a, b, True) for index, a, b, _ in chunks_of(x, chunks, grows))

    x, _ = batch(2, 7)
    model = net()
    with faking() as mode:
        planner = _Planner(model, profile.meta_of(x), loss(), rule_widths(parse(model)), PLAIN, mode)
        steps = planner._program.steps
        ways = dict.fromkeys(replace(way, chunks=chunks) for step in steps for way in modes_of(step, 7))
        plans = [tuple(way if step.unit else Mode() for step in steps) for way in ways]
        abridged = [planner.exact(plan) for plan in plans]
        for place in (forward, backward):
            monkeypatch.setattr(place, "chunks_of", all_run)
        planner._peaks.clear()
        assert abridged == [planner.exact(plan) for plan in plans]


def test_below_the_smallest_there_is_no_plan(planned):
    with pytest.raises(TooSmall, match=f"smallest peak of this model, {planned.least} bytes"):
        planned.chosen(planned.least - 1)


def test_a_part_of_bptt_is_met_like_the_same_bytes(planned):
    part = 1.1 * planned.least / planned.bptt
    assert planned.chosen(fraction=part) == planned.chosen(int(part * planned.bptt))
    assert planned.chosen(fraction=part).peak_bytes <= part * planned.bptt


def test_min_spares_work_where_the_bytes_are_few(planned):
    """The smallest possible of this net would save kilobytes by many small chunks."""
    strict = planned.chosen(planned.least)
    assert strict.peak_bytes == planned.least == planned.min.smallest_bytes
    assert planned.least <= planned.min.peak_bytes <= planned.least + max(SLACK, TOLERANCE * planned.least)
    assert planned.work(planned.min.modes) < planned.work(strict.modes)
    assert planned.min.added < strict.added


def test_min_takes_what_an_allocator_cannot_give_back(planned, monkeypatch):
    """Up to a segment more, if that is a small part of BPTT's peak."""
    for name, value in {"TOLERANCE": 0.0, "SLACK": 0, "SHARE": 8}.items():
        monkeypatch.setattr(f"methods.streaming.plan.{name}", value)
    part = planned.bptt // 8
    found = {}
    for segment in (0, part // 4, 10 * part):
        monkeypatch.setattr("methods.streaming.plan.SEGMENT", segment)
        found[segment] = planned.chosen()
        assert planned.least <= found[segment].peak_bytes <= planned.least + min(segment, part)
    none, little, whole = (planned.work(each.modes) for each in found.values())
    assert none >= little >= whole
    assert none > whole


def test_work_is_added_by_what_runs_again_alone(planned):
    with planned.mode:
        steps, costs = planned.planner._program.steps, planned.planner._costs
        at_once = sum(costs.added(index, Mode(keep="u")) for index, step in enumerate(steps) if step.unit is not None)
        again = sum(costs.added(index, Mode(keep="x")) for index, step in enumerate(steps) if step.unit is not None)
    assert at_once == 0
    assert again > 0


def test_the_programme_finds_the_least_work_of_all_plans(planned):
    """Against every combination of modes that keep something or not, on the model's own bytes."""
    from itertools import product

    planner = planned.planner
    limit = planned.least + (planned.bptt - planned.least) // 5
    with planned.mode:
        steps = planner._program.steps
        modes = [modes_of(step, 8) for step in steps]
        costs = [[planner._costs.cost(i, mode) for mode in found] for i, found in enumerate(modes)]
        bases = [planner._bases(index) for index in range(len(steps))]
        best = float("inf")
        for choice in product(*map(range, map(len, modes))):
            kept, work, fits = 0, 0.0, True
            for index, pick in enumerate(choice):
                cost, (forward, backward) = costs[index][pick], bases[index]
                fits = fits and forward + kept + cost.forward <= limit
                kept += cost.kept
                fits = fits and backward + kept + cost.backward <= limit
                work += cost.work
                if not fits or work >= best:
                    break
            else:
                if planner._around() + kept <= limit:
                    best = work
        got = sum(planner._costs.cost(i, mode).work for i, mode in enumerate(planner._least_work(limit)))
    assert got == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("text", ["0.4x", "300kB", "min"])
def test_the_step_that_runs_holds_what_was_promised(text):
    x, y = batch(4, 8)
    method = streamed(text)
    report = track(method, build(middle=SEW), x, y)
    plan = method.plan()
    assert report.peak_bytes == plan["predicted_peak_bytes"]
    assert plan["budget_bytes"] is None or report.peak_bytes <= plan["budget_bytes"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("min", Budget()),
        ("0.5x", Budget(fraction=0.5)),
        ("8GiB", Budget(bytes=8 << 30)),
        ("1.5 MB", Budget(bytes=1_500_000)),
        ("4096", Budget(bytes=4096)),
    ],
)
def test_budgets_as_text(text, expected):
    assert Budget.of(text) == expected


@pytest.mark.parametrize("text", ["", "x", "0x", "-1GB", "8 bananas", "1e9"])
def test_what_is_no_budget(text):
    with pytest.raises(ValueError, match="give 'min'"):
        Budget.of(text)
