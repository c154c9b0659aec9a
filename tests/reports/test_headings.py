"""Titles of groups: short, and no two the same."""

from harness.spec import LossSpec, Ref
from reports.groups import group, latest
from reports.headings import Headings
from reports.labels import Labels
from tests.reports import builders as b

BPTT, CHECKPOINT = b.METHODS[:2]
MEAN = LossSpec(kind="time_mean")


def titles(*records):
    items = latest(b.items(records))
    groups = group(items)
    named = Headings(groups, Labels(item.record.spec for item in items))
    return {(g.spec.T, g.spec.loss.kind): named.title(g) for g in groups}


def test_a_title_holds_what_tells_it_from_others_of_the_same_network_and_size():
    found = titles(b.record(BPTT, 0, T=4), b.record(BPTT, 1, T=8), b.record(BPTT, 2, T=8, loss=MEAN))
    assert found[4, "per_step"] == "vgg \u00b7 digits \u00b7 T = 4 \u00b7 batch = 32"
    assert "per_step" in found[8, "per_step"]
    assert "time_mean" in found[8, "time_mean"]


def test_no_two_titles_are_the_same():
    records = [
        b.record(BPTT, 10 * i + j, T=T, loss=loss, precision=precision)
        for i, T in enumerate((4, 8))
        for j, (loss, precision) in enumerate([(LossSpec(), "fp32"), (MEAN, "fp32"), (MEAN, "amp-bf16")])
    ]
    items = latest(b.items(records))
    groups = group(items)
    named = Headings(groups, Labels(item.record.spec for item in items))
    assert len({named.title(g) for g in groups}) == len(groups) == 6


def test_the_layers_of_a_network_are_written_without_brackets():
    nets = [Ref(name="vgg", options={"cfg": [64, "A", 128, "A", 256][:n], "tau": 4 / n}) for n in (3, 5)]
    named = Labels(b.record(BPTT, i, model=net).spec for i, net in enumerate(nets))
    assert [named.short("model", net) for net in nets] == [
        "vgg(cfg=[64, 'A', 128], tau=1.33333)",
        "vgg(cfg=64-A-128-A-256, tau=0.8)",
    ]


def test_a_method_timed_against_two_baselines_has_two_labels():
    twice = [b.record(CHECKPOINT, n, baseline=name) for n, name in enumerate(("bptt", "bptt-fused"))]
    records = [*twice, b.record(BPTT, 2)]
    labels = Labels(record.spec for record in records)
    assert [labels.method(r.spec) for r in records] == [
        "checkpoint against bptt",
        "checkpoint against bptt-fused",
        "bptt",
    ]
    assert [labels.place(label) for label in labels.methods] == [0, 1, 2]
    (only,) = group(latest(b.items(records)))
    assert len(only.rows) == 3
    assert Labels(record.spec for record in records[1:]).method(records[1].spec) == "checkpoint"
