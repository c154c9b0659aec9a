"""The planner's parts, and ``snnbench plan`` from the command line."""

import re

import pytest
import torch
from click.testing import CliRunner

from harness import cli, ledger, memory, predict, registry
from harness.api import cell
from harness.contracts import DataInfo, Method
from harness.errors import UsageError
from harness.plan.answer import Answer
from harness.plan.candidates import Row, budgeted, chosen, evaluate, options_of, share_limits
from harness.plan.evidence import MARGIN, SEEDS, Evidence, weigh
from harness.plan.planning import optimizer_bytes
from harness.plan.predictor import Cost, Predictor, Subject
from harness.plan.search import Largest
from harness.plan.size import Budget, parse_shape, parse_size, show_size
from harness.plan.work import Work
from harness.spec import Ref
from tests.harness import cells

SHAPE = {"name": "shape", "sample": [1, 8, 8], "classes": 10}
NET = {"name": "convnet", "channels": [4, 8], "norm": "per_step"}


def call(*words):
    return CliRunner().invoke(cli.snnbench, ["plan", *map(str, words)])


def subject(**fields):
    spec = cell("bptt", NET, SHAPE, predicted=True, phases=("memory",), **({"T": 3, "batch": 4} | fields))
    return Subject(spec, DataInfo((1, 8, 8), 10, "here"))


def row(name, peak=100, work=1.0, gradient="exact", model="same", **fields):
    cost = None if peak is None else Cost(peak, peak // 2, 10, 0, work)
    return Row(Ref(name=name), gradient, model, "same", "predicted", cost, **fields)


def answer(*rows, evidence=None, budget=150):
    found = Answer(subject().spec, Budget(budget, 0), rows, row("bptt", 200, 1.0))
    return found if evidence is None else Answer(found.spec, found.budget, rows, found.reference, evidence)


def test_what_cannot_be_estimated_is_never_the_quickest():
    unknown = row("streamed", 50, None)
    found = answer(row("checkpoint", 100, 1.3), unknown)
    assert found.slow_down(unknown) is None
    assert found.recommended.method.name == "checkpoint"
    assert [r.method.name for r in found.ordered()] == ["checkpoint", "streamed"]
    assert "slow-down not known" in str(found)
    alone = answer(row("checkpoint", 400, 1.3), unknown)
    assert alone.recommended is unknown
    assert "slow-down unknown" in alone.why


@pytest.mark.parametrize("known", [True, False])
def test_a_step_that_is_abridged_under_fake_tensors_is_estimated_by_its_method(known, monkeypatch):
    about, ref = subject(), registry.complete("methods", "streamed", {}, "here")
    plugin = registry.plugin("methods", "streamed")
    if not known:
        monkeypatch.setattr(plugin, "added_work", Method.added_work)
        assert Predictor(about, ref).base().work is None
        return
    cost = Predictor(about, ref).base()
    base = min(Predictor(about, Ref(name=name)).base().work for name in ("bptt", "bptt-fused"))
    assert cost.work == base + cost.plan["added_work"]
    assert cost.plan["added_work"] > 0


@pytest.mark.parametrize(
    ("way", "optimizer"),
    [
        ("bptt", "adam"),
        ("checkpoint", "sgd"),
        ("bptt-fused", "sgd"),
        ("sltt", "sgd"),
        ("rate", "adam"),
        ("stdl", "sgd"),
    ],
)
def test_a_quick_prediction_is_the_cells_prediction(way, optimizer):
    """Without a settling step, too: at every size the bytes are those of a predicted cell."""
    ref = registry.complete("methods", way, {}, "here")
    about = subject(recipe={"optimizer": optimizer})
    predictor = Predictor(about, ref)
    assert predictor.base().peak_bytes == predict.predict(about.cell(ref, 3, 4))[0].peak_live_bytes
    for T, N in ((3, 9), (6, 4)):
        assert predictor.peak(T, N) == predict.predict(about.cell(ref, T, N))[0].peak_live_bytes


def test_settling_by_hand_is_what_track_does_by_itself():
    about = subject()
    with predict.faking(about.spec, about.info) as bench:
        by_itself = memory.track(bench.trainer(), bench)
    assert Predictor(about, about.spec.method).base().peak_bytes == by_itself.peak_bytes


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_optimizers_state_is_foreseen(optimizer):
    about = subject(recipe={"optimizer": optimizer})
    report, model = predict.predict(about.spec)[0], registry.create("models", about.spec.model).build((1, 8, 8), 10)
    assert optimizer_bytes(model, about.spec) == report.split.optimizer


def test_the_edge_of_the_batch_is_real():
    about = subject()
    base = Predictor(about, about.spec.method).base().peak_bytes
    found = evaluate(about, about.spec.method, 5 * base, limits=True)
    peaks = [
        predict.predict(about.cell(found.method, 3, found.batch.value + more))[0].peak_live_bytes for more in (0, 1)
    ]
    assert peaks[0] <= 5 * base < peaks[1]


def test_recomputing_takes_longer_and_bptt_takes_as_long_as_itself():
    about = subject()
    work = {name: Predictor(about, Ref(name=name)).base().work for name in ("bptt", "checkpoint")}
    assert 1.1 < work["checkpoint"] / work["bptt"] < 2


def test_a_method_that_cannot_says_why():
    about = subject(loss="time_mean")
    assert "per_step" in evaluate(about, Ref(name="sltt"), 10**9, limits=True).reason


def test_rows_survive_the_pipe():
    for each in (
        row("a", batch=Largest(4), steps=Largest(9, verified=False), notes=("x",)),
        row("b", None, reason="no"),
    ):
        assert Row.from_json(each.to_json()) == each


def test_the_order_is_fits_then_exact_then_quick():
    rows = [row("biased", 50, 0.5, "biased"), row("big", 900, 1.0), row("slow", 90, 2.0), row("quick", 140, 1.2),
            row("none", None, reason="no"), row("other", 10, 0.1, model="changed: x")]  # fmt: skip
    found = answer(*rows)
    assert [each.method.name for each in found.ordered()] == ["quick", "slow", "other", "biased", "big", "none"]
    assert found.recommended.method.name == "quick"
    assert "exact method with the least slow-down" in found.why
    assert "1.20" in found.table()[0]
    assert found.left_out() == ["left out: none: no"]


def test_accuracy_in_the_store_lets_a_biased_method_win():
    rows = [row("bptt", 100, 1.0), row("sltt", 50, 0.5, "biased")]
    good = Evidence({}, {"sltt": [0.0] * SEEDS})
    assert answer(*rows, evidence=good).recommended.method.name == "sltt"
    for bad in ([0.0] * (SEEDS - 1), [0.0] * SEEDS + [-2 * MARGIN]):
        assert answer(*rows, evidence=Evidence({}, {"sltt": bad})).recommended.method.name == "bptt"


def test_measured_ratios_replace_estimates_and_are_marked():
    found = answer(row("bptt"), row("slow", 90, 9.0), evidence=Evidence({"slow": (0.9, 3)}, {}))
    assert found.recommended.method.name == "slow"
    assert "measured, 3 records" in found.why
    assert any("0.90 (measured)" in line for line in found.table()[0])


def test_nothing_fits():
    found = answer(row("bptt", 900), row("small", 300, batch=Largest(2)), budget=100)
    assert found.recommended is None
    assert found.why == "recommended: none at N=4; small needs 300 B, and fits up to N=2"


def test_evidence_is_of_the_same_model_and_data():
    spec = subject().spec
    job = cells.job("x", run_id="r")
    record = cells.minimal_record(job, "ok")
    assert weigh([record], spec) == Evidence({}, {})


def test_a_budget_gives_two_rows_that_share_their_limits():
    refs = chosen(["streamed"], 2**30)
    assert [ref.options["budget"] for ref in refs] == ["1024MiB", "min"]
    assert [budgeted(ref) for ref in refs] == [True, False]
    rows = [Row(refs[0], "exact", "same", "same"), Row(refs[1], "exact", "same", "same", batch=Largest(7))]
    assert share_limits(rows)[0].batch == Largest(7)
    assert [ref.options["budget"] for ref in chosen(["streamed:budget=0.3x"], 2**30)] == ["0.3x"]


def test_sizes_and_shapes():
    assert parse_size("24GiB", "x") == 24 * 2**30
    assert parse_size("1.5 MB", "x") == 1_500_000
    assert parse_size(7, "x") == 7
    assert show_size(2**30 + 2**29) == "1.50 GiB"
    assert parse_shape("4,2,3,8,8", "--input", "T,N,C,H,W") == (4, 2, 3, 8, 8)
    assert options_of(["a=1", "b=[1, 2]", "c=min"], "x") == {"a": 1, "b": [1, 2], "c": "min"}
    for bad in ("GiB", "-3MiB", "3 gib", "0B", "1e3"):
        with pytest.raises(UsageError, match="--budget"):
            parse_size(bad, "--budget")
    assert Budget.of("24GiB").reserve_bytes == 768 * 2**20 + -(-24 * 2**30 // 20)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--input", "1,8"], "--input '1,8'.*C,H,W|classes"),
        (["--input", "a,b,c", "--classes", 10], "--input 'a,b,c'"),
        (["--input", "1,8,8"], "--classes"),
        (["--dataset", "digitz"], "Did you mean 'digits'"),
        (["--dataset", "digits", "--input", "1,8,8"], "give one of them"),
        (["--dataset", "digits", "--budget", "24 GB RAM"], "--budget '24 GB RAM'.*GiB"),
        (["--dataset", "digits", "--budget", "1GiB", "--reserve", "1GiB"], "nothing is left"),
        (["--dataset", "digits", "--methods", "bptt,sltr"], "Did you mean 'sltt'"),
        (["--dataset", "digits", "--methods", "stdl:k=2"], "Allowed: K"),
        (["--dataset", "digits", "--model-option", "depth"], "key=value"),
        (["--dataset", "digits", "--model-option", "depth=3"], "depth"),
    ],
)
def test_mistakes_are_one_line_that_names_what_is_allowed(words, expected):
    said = call("--model", "convnet", *words)
    assert said.exit_code == 2
    assert said.stderr.startswith("snnbench: ")
    assert said.stderr.count("\n") == 1
    assert re.search(expected, said.stderr), said.stderr


def test_the_command_prints_a_sorted_answer_and_one_recommendation():
    said = call("--model", "convnet", "--dataset", "digits", "--budget", "1GiB", "--batch", 8, "--jobs", 2,
                "--methods", "bptt,checkpoint,sltt,ell", "--model-option", "channels=[4]")  # fmt: skip
    assert said.exit_code == 0, said.stderr
    lines = said.output.splitlines()
    assert lines[1].startswith("budget 1.00 GiB, of which")
    assert lines[2] == "estimated slow-downs weighed as A100 40GB, the default"
    assert lines[3].split()[:3] == ["method", "gradient", "peak"]
    assert lines[4].split()[:3] == ["->", "bptt", "exact"]
    assert lines[5].split()[:2] == ["checkpoint", "exact"]
    assert re.search(r"^left out: (sltt, ell|ell, sltt): runs one time step at a time", said.output, re.MULTILINE)
    assert lines[-1].startswith("recommended: bptt: the exact method with the least slow-down")


def test_a_model_that_cannot_take_the_input_is_one_error():
    said = call("--model", "convnet", "--input", "1,1,1", "--classes", 2)
    assert said.exit_code == 2
    assert "--model convnet: convnet halves its input" in said.stderr


def test_a_fallback_is_work_of_the_kernel_that_it_stands_for():
    with Work() as work:
        x = torch.ones(8)
        before = work.bytes
        for _ in range(2):
            with ledger.kernel(100):
                _ = (x * 2 + 1) @ x
        assert (work.bytes - before, work.flops) == (200, 0)
        _ = x * 2
        assert work.bytes - before == 200 + 2 * 32


def test_a_fused_neuron_is_less_work_and_the_way_to_the_host_is_more():
    about = subject()
    costs = {name: Predictor(about, registry.complete("methods", name, {}, "here")).base()
             for name in ("bptt", "bptt-fused", "offload")}  # fmt: skip
    assert costs["bptt-fused"].work < 0.9 * costs["bptt"].work
    there_and_back = 2 * 1555e9 / 31.5e9 * costs["offload"].host_bytes
    assert costs["offload"].host_bytes > 0
    assert costs["offload"].work >= costs["bptt"].work + there_and_back
