"""The verdict on a claim: every branch of the rule that docs/claims.md states, and how the files are read."""

import csv
import io
import re

import pytest
from click.testing import CliRunner

from harness.errors import UsageError
from harness.spec import Ref
from harness.store import Store
from reports.claims import judge, load
from reports.claims.judge import FAR, WORDS
from reports.claims.loading import parse
from reports.claims.schema import METRICS, UNITS_OF
from reports.claims.table import (
    HEADS,
    KERNEL,
    PLAIN_HEADS,
    UNMEASURED,
    claim_grid,
    csv_text,
    markdown,
    plain_rows,
    published,
    terminal,
)
from reports.claims.values import VALUES
from reports.cli import claims as command
from tests.harness.samples import sample_memory
from tests.integration.pages import DOCS
from tests.reports import builders as b
from tests.reports.claim_cases import PEAK, cell, claim, claims
from tests.reports.test_golden import golden

MIB = 2**20
CHECKPOINT = Ref(name="checkpoint")


def verdict(one, *items, substitutes=None):
    return judge([one], items, substitutes or {})[0]


def predicted(one, *items):
    return verdict(one, *items).predicted


# Which cells count -----------------------------------------------------------------------------------------------------


def test_a_prediction_on_a_shape_of_the_same_size_counts():
    side = predicted(claim(), cell())
    assert (side.word, side.value, side.ratios) == ("reproduced", PEAK, {"MiB": 1.0})


@pytest.mark.parametrize(
    "change",
    [{"T": 5}, {"batch": 16}, {"precision": "amp-bf16"}, {"model": Ref(name="vgg", options={"tau": 1.5})},
     {"model": Ref(name="mlp")}, {"method": CHECKPOINT}],
)  # fmt: skip
def test_a_prediction_under_other_conditions_does_not(change):
    side = predicted(claim(), cell(**change))
    assert (side.word, side.value) == ("not run", None)


def test_an_input_of_another_size_does_not():
    other = cell()
    other.record.data["sample"] = [3, 16, 16]
    assert predicted(claim(), other).word == "not run"
    assert predicted(claim(), cell()).word == "reproduced"


def test_an_option_that_is_off_in_the_paper_must_be_off():
    settings = '[settings.net]\nmodel = "vgg"\nwithout = ["tebn"]\nT = 4\nbatch = 32\n'
    table = 'id = "x"\nsetting = "net"\nmethod = "bptt"\nmetric = "peak_memory"\nvalue = 1000.0\nunit = "MiB"'
    one = claims(table, settings=settings)[0]
    assert predicted(one, cell(model=Ref(name="vgg", options={"tebn": 4}))).word == "not run"
    assert predicted(one, cell(model=Ref(name="vgg", options={"tebn": None}))).word == "reproduced"


def test_a_stale_record_does_not():
    item = cell()
    assert predicted(claim(), type(item)(item.path, item.record, stale=True)).word == "not run"


def test_the_newest_cell_counts():
    assert predicted(claim(), cell(1, peak=2 * PEAK), cell(2)).value == PEAK


def test_a_reduced_measurement_never_reproduces_whatever_its_number():
    side = verdict(claim(), cell(predicted=False, T=2, batch=8)).measured
    assert side.text == "not comparable: reduced: T = 2, not 4; batch = 8, not 32"
    assert side.value is None


def test_a_profile_that_declares_a_substitute_never_reproduces():
    item = cell(predicted=False)
    key = item.record.suite, item.record.spec.profile
    assert verdict(claim(), item).measured.word == "reproduced"
    side = verdict(claim(), item, substitutes={key: "8 epochs"}).measured
    assert side.text == "not comparable: reduced: 8 epochs"


def test_measurement_and_prediction_are_judged_apart_and_the_device_is_named():
    both = verdict(claim(), cell(), cell(1, peak=PEAK * 2, predicted=False))
    assert (both.predicted.word, both.measured.word) == ("reproduced", "not reproduced")
    assert "thread" in both.measured.where


def test_what_is_not_installed_is_not_run():
    assert predicted(claim(method="tandem"), cell()).text == "not run: no method called tandem is installed"
    one = claims('id = "x"\nsetting = "a"\nmethod = "bptt"\nmetric = "peak_memory"\nvalue = 1\nunit = "MB"'.replace(
        "value = 1", "value = 1.0"), settings='[settings.a]\nmodel = "vit"\n')[0]  # fmt: skip
    assert predicted(one, cell()).text == "not run: no model called vit is installed"


# What is compared ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "word"),
    [(1.0, "reproduced"), (1.099, "reproduced"), (0.901, "reproduced"), (1.11, "differs"), (0.89, "differs"),
     (1 + FAR - 0.01, "differs"), (1 + FAR + 0.01, "not reproduced")],
)  # fmt: skip
def test_a_value_and_its_tolerance(factor, word):
    side = predicted(claim(), cell(peak=int(PEAK * factor)))
    assert side.word == word
    assert f"{100 * (factor - 1):+.1f} %" in side.text


def test_an_unknown_unit_is_read_both_ways_and_both_are_shown():
    one = claim(unit="unknown")
    as_mb = predicted(one, cell(peak=10**9))
    assert as_mb.text == "reproduced: +0.0 % read as MB, -4.6 % as MiB"
    assert set(as_mb.ratios) == {"MB", "MiB"}
    assert predicted(one, cell(peak=PEAK)).text == "reproduced: +4.9 % read as MB, +0.0 % as MiB"
    assert published(one) == "1000 MB = 954 MiB, or MiB = 1,000 MiB"


@pytest.mark.parametrize(
    ("factor", "words"),
    [(0.87, "differs by -13.0 % read as MiB (as MB -8.8 %: reproduced)"),
     (1.08, "differs by +13.2 % read as MB (as MiB +8.0 %: reproduced)"),
     (1.2, "differs by +25.8 % read as MB, +20.0 % as MiB"),
     (0.48, "not reproduced: -52.0 % read as MiB (as MB -49.7 %: differs)")],
)  # fmt: skip
def test_where_the_readings_of_a_unit_disagree_the_less_favourable_verdict_counts(factor, words):
    assert predicted(claim(unit="unknown"), cell(peak=int(PEAK * factor))).text == words


def test_of_many_cells_that_an_incomparable_figure_could_mean_the_ends_are_shown():
    fields = {"method": "checkpoint", "baseline": "bptt", "metric": "memory_less", "value": 3.0, "unit": "ratio",
              "setting": None, "not_comparable": "T is unknown"}  # fmt: skip
    items = [cell(0), cell(1, peak=PEAK // 2, method=CHECKPOINT), cell(2, T=8),
             cell(3, T=8, peak=PEAK // 5, method=CHECKPOINT)]  # fmt: skip
    judged = judge([claim(**fields)], items, {})
    side = judged[0].predicted
    assert (side.text, side.value, side.span, side.cells) == ("not comparable: T is unknown", None, (2.0, 5.0), 2)
    assert plain_rows(judged)[0][4] == "2.00\u00d7 to 5.00\u00d7"
    row = claim_grid(judged).rows[0]
    assert (row[4].text, row[4].title, row[4].item) == ("2.00\u00d7 to 5.00\u00d7", "2 cells, from 2 to 5", None)
    assert predicted(claim(**fields), *items[:2]).value == 2.0


def test_a_node_is_compared_by_what_the_forward_keeps():
    one = claim(method="checkpoint", baseline="bptt", metric="node_memory_less", value=4.0, unit="ratio")
    items = [cell(0), cell(1, method=CHECKPOINT)]
    for item, kept in zip(items, (PEAK, PEAK // 4), strict=True):
        item.record.memory = item.record.memory.model_copy(update={"saved_bytes": kept})
    assert predicted(one, *items).text == "reproduced: +0.0 %"


def test_a_ratio_needs_both_cells_and_only_those_that_may_share_one():
    one = claim(method="checkpoint", baseline="bptt", metric="memory_ratio", value=0.5, unit="fraction")
    half = cell(1, peak=PEAK // 2, method=CHECKPOINT)
    assert predicted(one, cell(), half).word == "reproduced"
    assert "no record of the baseline bptt" in predicted(one, half).text
    other_kind = cell(2, predicted=False)
    assert "no record of the baseline bptt" in predicted(one, other_kind, half).text


def test_a_saving_that_is_none_is_not_reproduced_however_near():
    one = claim(method="checkpoint", baseline="bptt", metric="memory_ratio", value=0.9, unit="fraction", tolerance=0.05)
    side = predicted(one, cell(), cell(1, peak=PEAK, method=CHECKPOINT))
    assert side.word == "not reproduced"
    assert "there is no gain" in side.text


@pytest.mark.parametrize(("bound", "word"), [("up_to", "reproduced"), ("at_least", "differs")])
def test_up_to_takes_the_best_cell_and_at_least_the_worst(bound, word):
    one = claim(method="checkpoint", baseline="bptt", metric="memory_less", value=4.0, unit="ratio", bound=bound,
                setting=None)  # fmt: skip
    items = [cell(0), cell(1, peak=PEAK // 5, method=CHECKPOINT), cell(2, T=8),
             cell(3, T=8, peak=PEAK // 3, method=CHECKPOINT)]  # fmt: skip
    side = predicted(one, *items)
    assert side.word == word
    rank, T = ("best", 4) if bound == "up_to" else ("worst", 8)
    assert side.text.endswith(f"({rank} of 2 cells: vgg, T = {T}, batch 32)")


def test_more_than_a_bound_is_reproduced():
    one = claim(method="checkpoint", baseline="bptt", metric="memory_less", value=2.0, unit="ratio", bound="at_least")
    assert predicted(one, cell(), cell(1, peak=PEAK // 8, method=CHECKPOINT)).word == "reproduced"


def test_reserved_memory_is_not_the_ledgers():
    side = predicted(claim(memory="reserved"), cell())
    assert (side.word, side.value) == ("not comparable", PEAK)
    assert "reserved" in side.text


def test_a_gpu_gives_the_memory_that_the_claim_names():
    item = cell(predicted=False, device="cuda")
    memory = sample_memory(
        cuda_allocated_bytes=PEAK,
        cuda_reserved_bytes=3 * PEAK,
        cuda_requested_bytes=1,
        nvml_process_bytes=1,
        reasons={},
    )
    item.record.memory = memory
    assert verdict(claim(memory="allocated"), item).measured.value == PEAK
    assert verdict(claim(memory="reserved"), item).measured.value == 3 * PEAK


def test_figures_of_unknown_batch_are_not_compared():
    settings = '[settings.net]\nmodel = "vgg"\nT = 4\n'
    one = claims('id = "x"\nsetting = "net"\nmethod = "bptt"\nmetric = "peak_memory"\nvalue = 1000.0\nunit = "MiB"',
                 settings=settings)[0]  # fmt: skip
    assert predicted(one, cell()).text == "not comparable: the source does not give batch"


def test_what_the_file_calls_incomparable_is_but_its_value_is_shown():
    side = predicted(claim(not_comparable="T is unknown"), cell())
    assert (side.text, side.value) == ("not comparable: T is unknown", PEAK)
    assert predicted(claim(not_comparable="T is unknown")).text == "not comparable: T is unknown"


@pytest.mark.parametrize("metric", ["speed_ratio", "throughput", "step_time", "accuracy", "training_time"])
def test_a_prediction_says_nothing_of_time_and_accuracy(metric):
    baseline = "checkpoint" if metric == "speed_ratio" else None
    side = predicted(claim(metric=metric, unit=UNITS_OF[metric][0], baseline=baseline), cell())
    assert side.text.startswith("not run: a prediction runs nothing")


def test_times_of_a_cpu_are_not_a_gpus():
    one = claim(metric="speed_ratio", baseline="checkpoint", unit="fraction", value=1.0)
    cells = [cell(0, predicted=False), cell(1, predicted=False, method=CHECKPOINT)]
    side = verdict(one, *cells).measured
    assert side.text == "not comparable: timed on a CPU, published on a GPU"
    assert side.value is not None


def test_accuracy_needs_the_data_set_itself():
    one = claim(metric="accuracy", unit="%", value=95.0, tolerance=0.01)
    shape = verdict(one, cell(predicted=False)).measured
    assert "data shape, not imagenet" in shape.text
    real = cell(predicted=False, data=Ref(name="imagenet"))
    real.record.data["synthetic"] = False
    assert verdict(one, real).measured.word == "reproduced"
    real.record.data["variant"] = "a subset"
    assert verdict(one, real).measured.text == "not comparable: variant of the data: a subset"


def test_an_accuracy_is_the_mean_of_the_seeds():
    one = claim(metric="accuracy", unit="%", value=90.0, tolerance=0.01)
    items = []
    for number, (seed, found) in enumerate([(0, 0.5), (1, 0.92), (0, 0.88), (2, 0.903)]):
        item = cell(number, predicted=False, data=Ref(name="imagenet"), seed=seed)
        item.record.data["synthetic"] = False
        item.record.training = b.training(found, 3)
        items.append(item)
    other = cell(0, predicted=False, data=Ref(name="imagenet"), precision="amp-bf16", seed=7)
    assert verdict(one, other, *items).measured.text == "reproduced: +0.1 % (mean of 3 seeds)"
    assert verdict(one, items[1]).measured.text == "differs by +2.2 %"


def test_accuracy_differences_are_in_percentage_points():
    one = claim(metric="accuracy_difference", baseline="bptt", method="checkpoint", unit="pp", value=0.0,
                bound="at_least", tolerance=0.5, setting=None)  # fmt: skip
    items = []
    for number, (name, worse) in enumerate([("bptt", 0.0), ("checkpoint", 0.02)]):
        item = cell(number, predicted=False, method=Ref(name=name))
        item.record.data["synthetic"] = False
        item.record.training = b.training(0.9 - worse, 3)
        items.append(item)
    side = verdict(one, *items).measured
    assert side.text == "not reproduced: \u22122.00 percentage points"


def test_a_failed_cell_is_told():
    item = cell()
    item.record.memory = None
    item.record.phases["memory"].status = "oom"
    item.record.phases["memory"].reason = "asked for 80 GiB"
    assert predicted(claim(), item).text == "not run: oom in memory: asked for 80 GiB"


# Files -----------------------------------------------------------------------------------------------------------------

GOOD = (
    '[paper]\nname = "p"\ntitle = "P"\nsource = "s"\n[[claim]]\nid = "a"\nclaim = "c"\nprovenance = "notes"\n'
    'method = "bptt"\nmetric = "peak_memory"\nvalue = 1.0\nunit = "MB"\n'
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('unit = "MB"', 'unit = "mb"', r"p\.toml: claim\[0\]\.unit: 'mb' is not allowed.*Allowed: MB, MiB"),
        ('unit = "MB"', 'unit = "ms"', r"claim\[0\].*unit 'ms' does not fit the metric peak_memory\. Allowed: MB"),
        (
            'metric = "peak_memory"',
            'metric = "peak"',
            r"claim\[0\]\.metric: 'peak' is not allowed\. Allowed: peak_memory",
        ),
        ("value = 1.0", 'value = "1"', r"claim\[0\]\.value"),
        ("value = 1.0\n", "", r"claim\[0\]\.value: missing"),
        ("value = 1.0", "value = 1.0\nvalu = 2", r"claim\[0\]\.valu: unknown key\. Did you mean 'value'"),
        ("value = 1.0", 'value = 1.0\nsetting = "x"', r"claim\[0\]\.setting: no setting 'x'\. Allowed: \(none\)"),
        ("value = 1.0", 'value = 1.0\nbaseline = "bptt"', "the metric peak_memory takes no baseline"),
        ('provenance = "notes"', 'provenance = "blog"', "Allowed: abstract, figure, notes, tutorial"),
        ("[[claim]]", "[[claim", "p.toml: not valid TOML"),
    ],
)
def test_errors_name_file_key_and_allowed_values(old, new, message):
    assert old in GOOD
    with pytest.raises(UsageError, match=message):
        parse(GOOD.replace(old, new).encode(), "p.toml")


def test_ids_are_unique():
    twice = GOOD + GOOD[GOOD.index("[[claim]]") :]
    with pytest.raises(UsageError, match=r"claim\[1\]\.id: 'a' is claim\[0\]'s id already"):
        parse(twice.encode(), "p.toml")


def test_an_unknown_paper_is_named_with_those_that_exist():
    with pytest.raises(UsageError, match=r"unknown paper 'sltx'\. Did you mean 'sltt'"):
        load(["sltx"])


def test_every_metric_has_a_unit_and_a_value():
    assert set(METRICS) == set(UNITS_OF) == set(VALUES)


# What is shown ---------------------------------------------------------------------------------------------------------


def shown_cases():
    """Claims of every verdict, with the cells that give them."""
    tables = [
        ("exact", "bptt", 1000.0, 'unit = "MiB"'), ("either", "bptt", 1020.0, 'unit = "unknown"'),
        ("off", "bptt", 800.0, 'unit = "MiB"'), ("far", "bptt", 300.0, 'unit = "MiB"\nkernel = "SJLIF"'),
        ("reserved", "bptt", 1.0, 'unit = "unknown (giga)"\nmemory = "reserved"'),
        ("none", "tandem", 700.0, 'unit = "MB"'),
    ]  # fmt: skip
    made = [
        f'id = "{name}"\nsetting = "net"\nmethod = "{method}"\nmetric = "peak_memory"\nvalue = {value}\n{rest}'
        for name, method, value, rest in tables
    ]
    ratio = 'setting = "net"\nmethod = "checkpoint"\nbaseline = "bptt"\nmetric = "memory_ratio"\nvalue = 0.5\n'
    ratio += 'unit = "fraction"'
    made.append(f'id = "ratio"\n{ratio}')
    items = [cell(0), cell(1, peak=PEAK // 2, method=CHECKPOINT), cell(2, predicted=False, T=2)]
    return judge(claims(*made), items, {})


def test_the_table_whole():
    judged = shown_cases()
    assert {each.predicted.word for each in judged} == set(WORDS)
    made = markdown(judged)
    assert made == golden("claims.md", made)


def test_csv_holds_raw_values():
    rows = list(csv.DictReader(io.StringIO(csv_text(shown_cases()))))
    by_id = {row["claim"].split("/")[1]: row for row in rows}
    assert float(by_id["exact"]["predicted"]) == PEAK
    assert float(by_id["ratio"]["predicted"]) == 0.5
    assert by_id["none"]["predicted"] == ""


def test_the_page_marks_another_kernel_and_links_the_record():
    grid = claim_grid(shown_cases())
    far = next(row for row in grid.rows if row[1].value == "invented/far")
    assert "published with SJLIF" in far[4].marks["kernel"]
    assert far[4].item is not None
    assert len({len(row) for row in grid.rows} | {len(grid.heads)}) == 1


def test_columns_of_measurements_are_shown_where_there_is_one():
    judged = shown_cases()
    heads, rows, notes = terminal(judged)
    assert (len(heads), {len(row) for row in rows}) == (len(PLAIN_HEADS), {len(PLAIN_HEADS)})
    assert notes == [KERNEL]
    assert len(claim_grid(judged).heads) == len(HEADS)
    unmeasured = judge([each.claim for each in judged], [cell(0)], {})
    heads, rows, notes = terminal(unmeasured)
    assert (heads, {len(row) for row in rows}) == (PLAIN_HEADS[:6], {6})
    assert notes == [UNMEASURED, KERNEL]
    grid = claim_grid(unmeasured)
    assert [head.title for head in grid.heads][-1] == "verdict on the prediction"
    assert grid.note.endswith(UNMEASURED)
    assert {len(row) for row in grid.rows} == {len(grid.heads)}


def test_another_kernel_has_a_star_in_words_too():
    rows = {row[0].split("/")[1]: row for row in plain_rows(shown_cases())}
    assert rows["far"][4] == "1,000 MiB*"
    assert rows["exact"][4] == "1,000 MiB"
    assert f"\\{KERNEL}" in markdown(shown_cases())


def test_the_command(tmp_path):
    store = Store(tmp_path / "store")
    store.write(b.predicted(b.METHODS[0], 0))
    runner = CliRunner()
    table = runner.invoke(command, ["--store", str(store.root)])
    assert table.exit_code == 0, table.output
    assert re.search(r"\d+ claims\. predictions: .* not run", table.output)
    every = runner.invoke(command, ["--store", str(store.root), "--all", "--paper", "stdl"])
    assert "stdl/imagenet-4x" in every.output
    for form, first in (("csv", "paper,claim,provenance"), ("md", "| id | claim |")):
        assert runner.invoke(command, ["--store", str(store.root), "--format", form]).output.startswith(first)


def test_the_rule_is_documented():
    text = (DOCS / "claims.md").read_text(encoding="utf-8")
    for word in (*WORDS, *METRICS, f"{100 * FAR:g} %"):
        assert word in text, word
