"""Figures: what they draw, and that their SVG can stand in a page many times."""

import dataclasses
import re
import xml.etree.ElementTree as ET

import pytest

from harness.spec import Ref
from reports.collect import mark_stale
from reports.figures import base, curves, layers, modules, pareto, scaling, timeline
from reports.figures.style import styled
from reports.figures.svg import inline
from reports.groups import group, latest
from reports.headings import Headings
from reports.labels import Labels
from reports.tables import method_table
from tests.harness.samples import sample_fidelity
from tests.reports import builders as b

DRAWERS = {
    "scaling": lambda scene: scaling.draw(scene, "T"), "pareto": pareto.draw, "timeline": timeline.draw,
    "modules": modules.draw, "layers": layers.draw, "curves": curves.draw,
}  # fmt: skip


def scene(records):
    items = mark_stale(latest(b.items(records)))
    labels = Labels(item.record.spec for item in items)
    groups = group(items)
    return base.Scene([method_table(each, labels) for each in groups], Headings(groups, labels))


@pytest.fixture(scope="module")
def small():
    return scene(b.suite(steps=(4, 8), seeds=(0, 1)))


def svgs(draw, given):
    with styled():
        drawings, _ = draw(given)
        return [inline(d.figure, f"f{i}-", "a figure", d.tips) for i, d in enumerate(drawings)]


@pytest.mark.parametrize("name", DRAWERS)
def test_svg_is_themed_and_keeps_to_itself(name, small):
    for number, svg in enumerate(svgs(DRAWERS[name], small)):
        ET.fromstring(svg)
        assert not re.search(r"#[0-9a-fA-F]{6}\b", svg), "a colour that no theme changes"
        assert "var(--c" in svg
        assert "var(--ink)" in svg
        assert "DejaVu" not in svg
        assert "http" not in svg
        ids = re.findall(r'\bid="([^"]*)"', svg)
        assert len(ids) == len(set(ids))
        assert all(i.startswith(f"f{number}-") for i in ids)
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
        assert set(used) == set(ids)


@pytest.mark.parametrize("name", ["scaling", "modules"])
def test_svg_is_the_same_every_time(name, small):
    assert svgs(DRAWERS[name], small) == svgs(DRAWERS[name], small)


def test_every_method_has_its_own_look():
    from reports.figures.style import Mark

    looks = {(m.place % 10, m.marker, str(m.dashes)) for m in map(Mark, range(40))}
    assert len(looks) == 40


def test_failed_cells_are_crosses_with_their_reason():
    lost = [b.failed(b.METHODS[0], 10, T=16)]
    given = scene([*(b.record(b.METHODS[0], i, T=T) for i, T in enumerate((4, 8))), *lost])
    with styled():
        (drawing,), _ = scaling.draw(given, "T")
    assert set(drawing.tips.values()) == {
        "bptt at T = 16: oom in memory: RuntimeError: you tried to allocate 536870912 bytes"
    }
    assert len(drawing.tips) == len(scaling.PANELS)


def test_one_value_of_t_is_no_line():
    drawings, _ = scaling.draw(scene([b.record(b.METHODS[0], 0)]), "T")
    assert drawings == []


def test_over_batch_needs_batches():
    given = scene([b.record(b.METHODS[0], i, batch=batch) for i, batch in enumerate((8, 16))])
    with styled():
        (drawing,), note = scaling.draw(given, "batch")
    assert drawing.title == "vgg \u00b7 digits \u00b7 T = 8"
    assert note == ""


def test_predictions_of_measured_cells_are_not_drawn_twice(small):
    chosen = base.choose(small, timeline._usable, predicted=True)
    assert [table.group.spec.predicted for table in chosen.tables] == [False]
    assert chosen.other == 1


def test_predictions_alone_are_drawn():
    given = scene([b.predicted(b.METHODS[0], 0)])
    assert len(base.choose(given, timeline._usable, predicted=True).tables) == 1


def test_pareto_prefers_groups_that_learned():
    trained = [b.record(m, i, T=4) for i, m in enumerate(b.METHODS[:2])]
    timed = [b.record(m, 9 + i, T=8, phases=("memory", "time")) for i, m in enumerate(b.METHODS[:2])]
    given = scene([*trained, *(r.model_copy(update={"training": None}) for r in timed)])
    with styled():
        (drawing,), note = pareto.draw(given)
    assert "T = 4" in drawing.title
    assert "1 group(s) at another T or batch" in note


def test_stale_records_are_not_drawn():
    old = b.record(b.METHODS[0], 0, T=64).model_copy(update={"fingerprint": "0" * 16})
    given = scene([old, b.record(b.METHODS[0], 1, T=4)])
    assert [table.group.spec.T for table in base.choose(given, timeline._usable).tables] == [4]


def test_what_is_left_out_for_space_is_said():
    records = [b.record(b.METHODS[0], i, model=Ref(name=f"net{i}")) for i in range(base.MOST + 2)]
    chosen = base.choose(scene(records), timeline._usable)
    assert (len(chosen.tables), chosen.beyond) == (base.MOST, 2)
    assert "2 further group(s)" in chosen.note


def test_thinning_keeps_peaks_and_ends():
    points = [(e, 1000 + (e * 7919) % 101) for e in range(10_000)]
    points[4321] = (4321, 99_999)
    points[8765] = (8765, 1)
    kept = timeline.thin(points, 50)
    assert len(kept) <= 4 * 50
    assert {points[0], points[-1], (4321, 99_999), (8765, 1)} <= set(kept)
    assert kept == sorted(kept)


def test_short_timelines_stay_whole():
    points = [(0, 5), (1, 9), (2, 4)]
    assert timeline.thin(points, 100) == points


def test_front():
    points = [(1.0, 90.0), (2.0, 89.0), (3.0, 95.0), (3.0, 94.0)]
    assert pareto.front(points, upward=True) == [(1.0, 90.0), (3.0, 95.0)]
    assert pareto.front([(1.0, 9.0), (2.0, 7.0), (3.0, 8.0)], upward=False) == [(1.0, 9.0), (2.0, 7.0)]


def test_small_modules_are_folded_without_loss():
    counts = [{"a": 5, "b": 1, "c": 3}, {"b": 9, "d": 2}]
    named = modules.largest(counts, 2)
    assert named == ["a", "b"]
    assert modules.fold(counts[0], named) == {"a": 5, "b": 1, modules.REST: 3}
    assert sum(modules.fold(counts[1], named).values()) == 11


def test_curves_average_over_seeds():
    runs = [b.training(0.9, 3).epochs, b.training(0.8, 2).epochs]
    found = curves.over_epochs(runs, "test_accuracy")
    assert [interval.n for interval in found.values()] == [2, 2, 1]
    assert found[2].mean == pytest.approx((0.9 * (1 - 0.45**2) + 0.8) / 2)


def test_exact_zero_is_told_not_drawn(small):
    with styled():
        drawings, _ = layers.draw(small)
    assert all("Zero everywhere, hence not drawn: bptt." in d.note for d in drawings)
    assert all("bptt" not in {key.label for key in d.keys} for d in drawings)


def test_names_with_dollars_are_no_formulas():
    fidelity = sample_fidelity("initial")
    odd = fidelity.model_copy(update={"layers": [fidelity.layers[0].model_copy(update={"name": "a$b_{"})]})
    method = dataclasses.replace(b.METHODS[1], ref=Ref(name="cost$", options={}))
    record = b.record(method, 0).model_copy(update={"fidelity": [odd]})
    assert any("a$b_{" in svg for svg in svgs(layers.draw, scene([record])))
    assert any("cost$" in svg for svg in svgs(modules.draw, scene([record])))
