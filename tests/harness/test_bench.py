"""``snnbench bench``: the user's code is found, tried and described; the whole run is in the integration tests."""

import re
import sys
import tomllib

import pytest
from click.testing import CliRunner

from harness import cli, registry
from harness.api import bench
from harness.contracts import StagedModel
from harness.errors import UsageError
from harness.plan import loading
from harness.plan.benching import Request, _prepare, suite_text
from harness.plan.candidates import chosen
from harness.plan.user import User, UserOptions
from harness.suite.loading import load
from tests.harness import plan_nets

NETS = "tests.harness.plan_nets"


def call(*words):
    return CliRunner().invoke(cli.snnbench, ["bench", *map(str, words)])


def user(factory, **options):
    return User(UserOptions(factory=f"{NETS}:{factory}", **options))


def test_the_source_builds_stages_and_remembers_how():
    before = dict(User._decisions)
    model = user("residual").build((1, 8, 8), 10)
    assert isinstance(model, StagedModel)
    assert len(model.stages) == 3
    again = user("residual").build((1, 8, 8), 10)
    assert len(User._decisions) == len(before) + 1
    assert again.state_dict().keys() == model.state_dict().keys()


def test_the_source_refuses_other_classes_and_other_versions():
    with pytest.raises(ValueError, match="gives 10 classes; the data has 7"):
        user("residual").build((1, 8, 8), 7)
    with pytest.raises(ValueError, match="is not what it was: version"):
        user("residual", version="0" * 16).build((1, 8, 8), 10)
    version = loading.fingerprint(f"{NETS}:residual", plan_nets.residual())
    assert user("residual", version=version).build((1, 8, 8), 10)


def test_a_version_tells_models_apart():
    one = loading.fingerprint(f"{NETS}:residual", plan_nets.residual())
    assert one == loading.fingerprint(f"{NETS}:residual", plan_nets.residual())
    assert one != loading.fingerprint(f"{NETS}:sequential", plan_nets.sequential())


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("plan_nets", "module:factory"),
        ("no_such_module_here:make", "cannot be imported"),
        (f"{NETS}:make", "no callable 'make'.*Allowed: .*residual"),
        (f"{NETS}:not_a_model", "has to give a torch.nn.Module, gives int"),
        (f"{NETS}:Block", "calling it failed: TypeError"),
    ],
)
def test_mistakes_about_the_factory(factory, words):
    said = call(factory, "--input", "4,2,1,8,8")
    assert said.exit_code == 2
    assert re.search(words, said.stderr), said.stderr
    assert said.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--input", "4,2"], "--input '4,2'.*T,N,C,H,W"),
        (["--input", "4,2,3,8,8"], "does not run"),
        (["--input", "4,2,1,8,8", "--classes", "7"], "--classes 7.*has 10"),
        (["--input", "4,2,1,8,8", "--methods", "bptt,sltr"], "Did you mean 'sltt'"),
        (["--input", "4,2,1,8,8", "--stages", "nothing*"], "--stages 'nothing\\*'.*stem"),
    ],
)
def test_mistakes_about_the_input(tmp_path, words, expected):
    said = call(f"{NETS}:residual", *words, "--store", tmp_path / "store")
    assert said.exit_code == 2
    assert re.search(expected, said.stderr), said.stderr
    assert not (tmp_path / "store").exists()


def test_a_package_with_one_of_our_names_is_named_with_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    loading.import_here()
    assert str(tmp_path) in sys.path
    (tmp_path / "results").mkdir()
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "notes.txt").write_text("no package")
    loading.import_here()
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.py").touch()
    with pytest.raises(UsageError, match=rf"{tmp_path}/methods has the import name of snnbench's own 'methods' \(/"):
        loading.import_here()


def test_the_suite_is_one_that_run_and_report_understand(tmp_path):
    request = Request(f"{NETS}:residual", (4, 2, 1, 8, 8), tmp_path, classes=10, stages="blocks.*")
    options = {"factory": request.factory, "T": 4, "stages": "blocks.*", "version": "0" * 16}
    model = registry.complete("models", "user", options, "here")
    refs = chosen(["bptt", "streamed", "stdl"], None)
    text = suite_text("bench-x", request, model, refs)
    assert tomllib.loads(text)["grid"][0]["model"]["stages"] == "blocks.*"
    (tmp_path / "x.toml").write_text(text)
    cells = load(str(tmp_path / "x.toml")).expand("cpu")
    assert [cell.method for cell in cells] == refs
    assert all(cell.model == model for cell in cells)
    assert cells[0].data.options["sample"] == [1, 8, 8]


def test_a_method_whose_baseline_cannot_train_the_model_is_timed_against_bptt(tmp_path):
    refs = chosen(["bptt", "bptt-fused", "checkpoint", "streamed:budget=min"], None)
    for factory, baseline in (("residual", "bptt-fused"), ("no_neurons", "bptt")):
        request, model, _, plain = _prepare(Request(f"{NETS}:{factory}", (4, 2, 1, 8, 8), tmp_path), refs)
        (tmp_path / "x.toml").write_text(suite_text("bench-x", request, model, refs, plain))
        cells = {cell.method.name: cell.baseline for cell in load(str(tmp_path / "x.toml")).expand("cpu")}
        assert cells == {"bptt": "bptt", "bptt-fused": "bptt", "checkpoint": "bptt", "streamed": baseline}


def test_from_python_only_what_others_can_import():
    with pytest.raises(UsageError, match="other processes cannot import it"):
        bench(lambda: plan_nets.residual(), (4, 2, 1, 8, 8))
