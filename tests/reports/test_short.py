"""In short: the winner of each question is recomputed here from what the records hold."""

import itertools

from reports.about import About
from reports.page import Suite, render
from reports.short import LEAST, QUESTIONS, short
from tests.reports import builders as b

THIRD = b.Invented(b.Ref(name="torch-checkpoint"), 0.7, False, 1.0, 0.0, 2e-7)
TWIN = b.Invented(b.Ref(name="rate"), 0.4, False, 1.0, 0.0, 0.5, exact=False)
"""Both as accurate as BPTT, seed by seed."""
METHODS = (*b.METHODS, THIRD, TWIN)


def page(records):
    return Suite(b.SUITE, b.items(records), 0, About(b.SUITE))


def answers(records):
    suite = page(records)
    grid = short(suite.tables, suite.headings)
    return grid, {(row[0].value, "predicted" in row[0].marks): row for row in grid.rows}


def all_ok(methods=METHODS, steps=(8,), **changes):
    number = itertools.count()
    return [b.record(m, next(number), T=T, seed=s, **changes) for T in steps for m in methods for s in (0, 1, 2)]


def test_winners_follow_from_the_records():
    _, found = answers(all_ok())
    names = {question: row[1].value.split("(")[0] for (question, _), row in found.items()}
    assert names["least memory, BPTT's gradient"] == "checkpoint-compress"
    assert names["least memory, any gradient"] == "stdl"  # 0.6 of one step, against 1.0 and 0.3 of eight
    assert names["fastest step, BPTT's gradient"] == "bptt"
    assert names["fastest step, any gradient"] == "sltt"
    assert names["least memory, as accurate as BPTT"] == "rate"  # the others vary, or lose two points and more
    assert len(found) == len(QUESTIONS)


def test_an_exact_method_that_broke_its_promise_is_no_answer():
    records = all_ok()
    broken = [
        r.model_copy(update={"fidelity": [f.model_copy(update={"exact": False}) for f in r.fidelity]})
        if r.spec.method.name == "checkpoint-compress" else r
        for r in records
    ]  # fmt: skip
    row = answers(broken)[1]["least memory, BPTT's gradient", False]
    assert row[1].value == "checkpoint"


def test_a_method_timed_against_two_baselines_takes_part_once():
    winner = next(m for m in METHODS if m.ref.name == "checkpoint-compress")
    again = [b.record(winner, 900 + s, T=8, seed=s, baseline="checkpoint") for s in (0, 1, 2)]
    grid, found = answers(all_ok() + again)
    titles = [head.title for head in grid.heads]
    row = found["least memory, BPTT's gradient", False]
    assert row[1].value.startswith("checkpoint-compress against ")
    assert row[titles.index("next best")].text.startswith("checkpoint: ")
    exact = {m.ref.name for m in METHODS if m.exact}
    assert row[titles.index("of")].value == len(exact)


def test_read_off_the_group_with_most_methods():
    records = all_ok(METHODS[:4], steps=(32,)) + all_ok(steps=(4,))
    grid, found = answers(records)
    titles = [head.title for head in grid.heads]
    row = found["least memory, any gradient", False]
    assert row[titles.index("of")].value == len(METHODS)
    assert "T = 4" in row[titles.index("in")].text


def test_of_as_many_methods_the_larger_step():
    grid, found = answers(all_ok(steps=(4, 16, 8)))
    place = [head.title for head in grid.heads].index("in")
    assert "T = 16" in found["least memory, any gradient", False][place].text


def test_predictions_stand_apart_and_have_no_times():
    number = itertools.count(1000)
    records = all_ok() + [b.predicted(m, next(number), T=64) for m in b.METHODS]
    _, found = answers(records)
    assert ("least memory, any gradient", True) in found
    assert ("fastest step, any gradient", True) not in found


def test_failures_take_no_part():
    records = [r for r in all_ok() if r.spec.method.name != "checkpoint-compress"]
    failed = [b.failed(b.METHODS[2], 900 + seed, T=8, seed=seed) for seed in (0, 1, 2)]
    row = answers([*records, *failed])[1]["least memory, BPTT's gradient", False]
    assert row[1].value == "checkpoint"


def test_the_fastest_is_told_by_interleaved_rounds_not_by_medians_of_other_hours():
    """SLTT's process ran while the machine was busy: its median is the longest, its ratio to BPTT the smallest."""
    records = [
        r.model_copy(update={"timing": r.timing.model_copy(update={"step_time_s": 9.0})})
        if r.spec.method.label.startswith("sltt(K=2") else r
        for r in all_ok()
    ]  # fmt: skip
    row = answers(records)[1]["fastest step, any gradient", False]
    assert row[1].value == "sltt(K=2)"


def test_two_methods_are_no_contest():
    suite = page(all_ok(b.METHODS[: LEAST - 1]))
    assert not short(suite.tables, suite.headings).rows


def test_the_page_begins_with_it(tmp_path):
    html = render(page(all_ok()), tmp_path)
    assert html.index('id="short"') < html.index('id="comparison"') < html.index('id="methods"')
