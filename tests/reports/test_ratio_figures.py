"""Curves of ratios: over T and batch with what papers claim of them, and over a method's own option."""

import dataclasses

import pytest

from harness.spec import Ref
from reports.cells import MIB
from reports.figures import options, published, scaling
from reports.figures.style import styled
from reports.figures.svg import inline
from tests.reports import builders as b
from tests.reports.test_figures import scene

BPTT, CHECKPOINT = b.METHODS[0], b.METHODS[2]


def drawn(draw, given):
    with styled():
        drawings, note = draw(given)
        return drawings, [inline(each.figure, f"f{i}-", "a figure", each.tips) for i, each in enumerate(drawings)], note


def over_t(scene_):
    return scaling.draw(scene_, "T")


def stdl(count, **changes):
    ref = Ref(name="stdl", options={"K": count, **changes})
    return dataclasses.replace(b.METHODS[5], ref=ref, kept=count / 10)


def test_a_ratio_is_the_baselines_bytes_over_these():
    methods = (BPTT, CHECKPOINT)
    given = scene([b.record(m, 10 * i + T, T=T) for i, m in enumerate(methods) for T in (4, 8)])
    points = scaling._points(given, list(given.tables), "T")
    table = {(line.label, t.group.spec.T): line for t in given.tables for line in t.lines}
    for T in (4, 8):
        peaks = [table[name, T].cell("saved_bytes").value for name in ("bptt", "checkpoint-compress")]
        point = points[(points["T"] == T) & (points["label"] == "checkpoint-compress")].iloc[0]
        assert point["saved_less"] == pytest.approx(peaks[0] / peaks[1])
        assert point["saved_bytes"] == pytest.approx(peaks[1] / MIB)
    assert points[points["label"] == "bptt"]["peak_less"].isna().all()


def test_a_claimed_ratio_is_a_line_in_the_figure_of_its_method_only():
    both = scene([b.record(m, 10 * i + T, T=T) for i, m in enumerate((BPTT, CHECKPOINT)) for T in (4, 8)])
    alone = scene([b.record(m, 10 * i + T, T=T) for i, m in enumerate((BPTT, b.METHODS[1])) for T in (4, 8)])
    words = "published: up to 8\u00d7 (gradient-checkpointing, abstract)"
    assert words in drawn(over_t, both)[1][0]
    assert "published" not in drawn(over_t, alone)[1][0]


def test_a_claim_about_another_input_is_no_line():
    images = Ref(name="shape", options={"sample": [3, 224, 224], "classes": 1000})
    for data, count in ((images, 1), (Ref(name="shape", options={"sample": [2, 48, 48], "classes": 10}), 0)):
        given = scene([b.record(m, i, data=data) for i, m in enumerate((BPTT, stdl(2)))])
        lines = [line for table in given.tables for line in table.lines]
        found = published.of_ratio(lines, "memory_less")
        assert [claim.value for claim in found] == [4.0] * count


def test_a_figure_without_a_second_method_has_no_ratios():
    (drawing,), _, _ = drawn(over_t, scene([b.record(BPTT, T, T=T) for T in (4, 8)]))
    assert len(drawing.figure.axes) == len(scaling.PANELS)


def test_an_option_with_three_values_is_a_curve():
    given = scene([b.record(m, i) for i, m in enumerate((BPTT, stdl(1), stdl(2), stdl(4)))])
    (drawing,), (svg,), note = drawn(options.draw, given)
    assert drawing.title.startswith("stdl over K \u00b7 ")
    assert drawing.note == "The dashed line is bptt. Bars are 95 % t-intervals over seeds."
    assert note == ""
    peaks = {
        line.row.spec.method.options["K"]: line.cell("peak_live_bytes").value / MIB
        for line in given.tables[0].lines
        if line.row.spec.method.name == "stdl"
    }
    (curve,) = (line for line in drawing.figure.axes[0].lines if len(line.get_xdata()) == len(peaks))
    assert list(curve.get_xdata()) == sorted(peaks)
    assert list(curve.get_ydata()) == pytest.approx([peaks[k] for k in sorted(peaks)])
    assert [ax.get_ylabel() for ax in drawing.figure.axes] == ["MiB", "times less", "%"]
    assert "stdl: K" in svg


def test_curves_of_one_option_say_what_else_they_differ_in():
    rules = [stdl(k, aux_rule=rule) for rule in ("max_subset", "classifier_only") for k in (1, 2, 4)]
    drawings, _, _ = drawn(options.draw, scene([b.record(m, i) for i, m in enumerate((BPTT, *rules))]))
    names = {"stdl(aux_rule=max_subset)", "stdl(aux_rule=classifier_only)"}
    assert {drawing.title.split(" over K")[0] for drawing in drawings} == names
    assert {key.label for drawing in drawings for key in drawing.keys} == names


@pytest.mark.parametrize("methods", [(BPTT, stdl(1), stdl(2)), (BPTT, stdl(1), stdl(2), stdl(4, budget=3))])
def test_two_values_of_an_option_are_no_curve(methods):
    assert drawn(options.draw, scene([b.record(m, i) for i, m in enumerate(methods)]))[0] == []
