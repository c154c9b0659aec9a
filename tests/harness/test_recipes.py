"""Recipes: their files, how a suite names them, schedules and objectives."""

from __future__ import annotations

import math

import pytest
import torch
from click.testing import CliRunner
from pydantic import ValidationError
from torch import nn

from harness import cli, suite, training
from harness.build import make_loss
from harness.errors import UsageError
from harness.spec import CellSpec, LossSpec, Recipe
from harness.suite import recipes
from tests.harness.distributions import installed

SUITE = """
[suite]
name = "mini"
title = "A small suite"
[profiles.cpu]
[profiles.short]
recipe = { epochs = 2 }
[profiles.other]
recipe = "plain"
set = { T = 2 }
[defaults]
T = 4
batch = 16
model = { name = "net", width = 8 }
data = "toy"
phases = "train"
recipe = { lr = 0.5, clip_grad_norm = 1.0 }
[[grid]]
name = "one"
method = "alpha"
"""
PLAIN = """
name = "plain"
title = "A recipe"
source = "nobody"
[recipe]
optimizer = "sgd"
lr = 0.1
schedule = "multistep"
milestones = [3, 5]
epochs = 7
[loss]
criterion = "tet"
[published]
data = "toy"
model = "net"
T = 6
batch = 128
augmentation = "none"
"""


@pytest.fixture
def acme(tmp_path_factory):
    """Plugins, and a package that offers two recipes."""
    with (
        installed(tmp_path_factory.mktemp("plugins")),
        installed(tmp_path_factory.mktemp("holder"), "", {}, "h") as root,
    ):
        folder = root / "acme_recipes" / "recipes"
        folder.mkdir(parents=True)
        (folder / "plain.toml").write_text(PLAIN)
        silent = PLAIN.replace('"plain"', '"silent"').replace('[loss]\ncriterion = "tet"\n', "")
        (folder / "silent.toml").write_text(silent)
        (root / "h-1.2.dist-info" / "entry_points.txt").write_text("[snnbench.suites]\nx = acme_recipes\n")
        yield folder


def cell(grid="", profile="cpu", text=SUITE) -> CellSpec:
    (found,) = suite.parse((text + grid).encode(), "mini.toml").expand(profile)
    return found


def message(grid="", profile="cpu", text=SUITE) -> str:
    with pytest.raises(UsageError) as error:
        cell(grid, profile, text)
    assert "\n" not in str(error.value)
    return str(error.value)


# In a suite ------------------------------------------------------------------------------------------------------------


def test_a_named_recipe_takes_the_place_of_what_stands_below_it(acme):
    found = cell('recipe = "plain"\n')
    assert found.recipe == Recipe(lr=0.1, schedule="multistep", milestones=(3, 5), epochs=7)
    assert found.recipe.clip_grad_norm is None, "the defaults' keys are not mixed in"
    assert found.loss == LossSpec(criterion="tet")
    assert (found.T, found.batch) == (4, 16), "axes stay the suite's"


def test_keys_beside_and_above_the_name_change_it(acme):
    grid = 'recipe = { name = "plain", epochs = 9, weight_decay = 1e-4 }\n'
    found = cell(grid)
    assert (found.recipe.epochs, found.recipe.weight_decay, found.recipe.milestones) == (9, 1e-4, (3, 5))
    assert cell(grid, "short").recipe.epochs == 2
    assert cell("recipe = { epochs = 9 }\n", "other").recipe.epochs == 7, "the profile's recipe is the last word"


def test_the_resolved_values_are_the_cells_identity(acme):
    named = cell('recipe = "plain"\n')
    written = cell(
        'loss = { criterion = "tet" }\n'
        'recipe = { name = "silent", lr = 0.1, schedule = "multistep", milestones = [3, 5], epochs = 7 }\n'
    )
    assert named.hash == written.hash
    assert '"tet_lambda":0.001' in named.canonical()
    assert CellSpec.model_validate_json(named.canonical()) == named


@pytest.mark.parametrize(
    ("grid", "profile", "defaults", "expected"),
    [
        ('recipe = "plain"\nloss = "time_mean"\n', "cpu", "", "time_mean cross_entropy"),
        ('recipe = "plain"\n', "cpu", 'loss = "time_mean"\n', "per_step tet"),
        ('recipe = "silent"\n', "cpu", 'loss = "time_mean"\n', "time_mean cross_entropy"),
        ('recipe = "silent"\n', "cpu", "", "per_step cross_entropy"),
        ('loss = { criterion = "mse" }\n', "other", "", "per_step mse"),
        ("", "other", 'loss = "time_mean"\n', "per_step tet"),
        ("", "cpu", "", "per_step cross_entropy"),
    ],
)
def test_a_recipes_loss_counts_where_profile_and_grid_say_none(acme, grid, profile, defaults, expected):
    loss = cell(grid, profile, SUITE.replace("[[grid]]", defaults + "[[grid]]")).loss
    assert f"{loss.kind} {loss.criterion}" == expected


def test_the_defaults_may_name_a_recipe(acme):
    text = SUITE.replace("recipe = { lr = 0.5, clip_grad_norm = 1.0 }", 'recipe = "plain"')
    assert cell(text=text).loss.criterion == "tet"
    assert cell("recipe = { lr = 0.3 }\n", text=text).recipe.lr == 0.3
    assert cell(text=text.replace("[[grid]]", 'loss = "time_mean"\n[[grid]]')).loss.kind == "time_mean"


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ('recipe = "plian"\n', "mini.toml: grid[0].recipe: unknown recipe 'plian'. Did you mean 'plain'? Allowed: "),
        ('recipe = { name = "plain", epoch = 3 }\n', "mini.toml: grid[0].recipe.epoch: unknown key. Did you mean 'epochs'"),
        ('recipe = { name = "plain", epochs = "3" }\n', "grid[0].recipe.epochs: '3': should be a valid integer"),
        ("recipe = 3\n", "grid[0].recipe: 3: should be a valid dictionary"),
        ('recipe = { schedule = "multistep" }\n', "milestones belong to schedule = 'multistep'"),
        ("recipe = { milestones = [5] }\n", "milestones belong to schedule = 'multistep'"),
        ('recipe = { name = "plain", milestones = [5, 3] }\n', "milestones have to ascend, but are [5, 3]"),
        ('recipe = { name = "plain", milestones = [0] }\n', "grid[0].recipe.milestones[0]: 0: should be greater than 0"),
        ("recipe = { min_lr = 2.0 }\n", "min_lr is 2, but must not be above lr = 0.5"),
        ('loss = { criterion = "tet", mse_weight = 0.1 }\n', "an option of the criterion 'ce_mse', but the"),
        ('loss = { criterion = "tet", kind = "time_mean" }\n', "it needs kind = 'per_step'"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_error(acme, grid, expected):
    assert expected in message(grid)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"plain"', '"plane"', "plain.toml: name: 'plane': a recipe is called as its file, 'plain'"),
        ("lr = 0.1", "lrr = 0.1", "recipe.lrr: unknown key. Did you mean 'lr'?"),
        ("milestones = [3, 5]\n", "", "milestones belong to schedule"),
        ("[recipe]\n", '[recipe]\nname = "silent"\n', "a recipe file cannot name another recipe"),
        ('source = "nobody"\n', "", "source: missing"),
        ("epochs = 7", "epochs = ", "not valid TOML"),
    ],
)
def test_a_wrong_recipe_file_is_an_error_that_names_it(acme, old, new, expected):
    assert old in PLAIN
    (acme / "plain.toml").write_text(PLAIN.replace(old, new))
    found = message('recipe = "plain"\n')
    assert expected in found
    assert "plain.toml" in found


def test_two_packages_with_a_recipe_of_one_name_are_an_error(acme, tmp_path):
    with installed(tmp_path, "", {}, "second") as root:
        (root / "more_recipes" / "recipes").mkdir(parents=True)
        (root / "more_recipes" / "recipes" / "plain.toml").write_text(PLAIN)
        (root / "second-1.2.dist-info" / "entry_points.txt").write_text("[snnbench.suites]\ny = more_recipes\n")
        with pytest.raises(UsageError, match="recipe 'plain' exists twice"):
            recipes.names()


# The installed files ---------------------------------------------------------------------------------------------------


def test_every_installed_recipe_is_complete_and_listed():
    found = {name: recipes.load(name, "test") for name in recipes.names()}
    assert {
        "sltt-cifar10", "sltt-cifar100", "ottt-cifar", "rate-cifar", "gc-cifar10-dvs", "gc-sew34-imagenet",
        "gc-spikformer-imagenet", "revsnn-cifar",
    } <= found.keys()  # fmt: skip
    for each in found.values():
        given = each.recipe.model_fields_set
        assert {"optimizer", "lr", "weight_decay", "schedule", "epochs"} <= given
        assert ("momentum" in given) == (each.recipe.optimizer == "sgd")
    result = CliRunner().invoke(cli.snnbench, ["list", "recipes"])
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in found)


def test_some_published_values():
    # claims.md, "Training recipes"
    sltt = recipes.load("sltt-cifar100", "test").recipe
    assert (sltt.lr, sltt.momentum, sltt.schedule, sltt.epochs, sltt.weight_decay) == (0.1, 0.9, "cosine", 200, 5e-4)
    rev = recipes.load("revsnn-cifar", "test")
    assert (rev.recipe.milestones, rev.recipe.weight_decay, rev.published.batch) == ((100, 150), 1e-4, 32)
    former = recipes.load("gc-spikformer-imagenet", "test").recipe
    assert (former.optimizer, former.lr, former.weight_decay) == ("adamw", 1e-3, 0.05)


# Schedules -------------------------------------------------------------------------------------------------------------


def rates(steps, **keys):
    recipe = Recipe(**({"lr": 0.5} | keys))
    factor = training.lr_factor(recipe, steps)
    return [recipe.lr * factor(step) for step in range(recipe.epochs * steps + 1)]


def test_multistep_is_torchs():
    ours = rates(1, schedule="multistep", milestones=(2, 5), gamma=0.2, epochs=7)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5], gamma=0.2)
    theirs = []
    for _ in range(8):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert ours == pytest.approx(theirs)
    assert rates(3, schedule="multistep", milestones=(1,), epochs=2) == pytest.approx([0.5] * 3 + [0.05] * 4)


def test_cosine_is_torchs_and_ends_at_its_least():
    ours = rates(5, schedule="cosine", min_lr=0.01, epochs=2)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=0.01)
    for rate in ours:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert ours[-1] == pytest.approx(0.01)


def test_warm_up_rises_and_the_schedule_is_counted_from_the_beginning():
    plain = rates(4, schedule="cosine", epochs=5)
    warm = rates(4, schedule="cosine", epochs=5, warmup_epochs=2, warmup_lr=0.1)
    assert warm[:8] == pytest.approx([0.1 + 0.4 * step / 8 for step in range(8)])
    assert warm[8:] == pytest.approx(plain[8:])
    assert rates(2, epochs=2) == pytest.approx([0.5] * 5)


def test_training_follows_the_schedule():
    import snnbench

    data = {"name": "digits", "n_train": 64, "n_test": 20}
    net = {"name": "convnet", "channels": [4]}
    curves = []
    for milestones in ((1,), (2,)):
        recipe = Recipe(schedule="multistep", milestones=milestones, gamma=1e-9, epochs=2, lr=0.05)
        spec = snnbench.cell("bptt", net, data, T=2, batch=32, recipe=recipe, phases=("train",))
        curves.append(snnbench.train(spec))
    first, second = curves
    assert first.epochs[0].train_loss == second.epochs[0].train_loss
    assert first.weights_sha256 != second.weights_sha256


# Objectives ------------------------------------------------------------------------------------------------------------


def batch():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 5, generator=draw, dtype=torch.float64), torch.tensor([0, 4, 2, 2])


def test_tet_is_the_authors():
    logits, target = batch()
    loss = make_loss(LossSpec(criterion="tet", tet_lambda=0.05, tet_means=0.8))
    # brain-intelligence-lab/temporal_efficient_training, functions.TET_loss, written out
    entropy = sum(nn.functional.cross_entropy(o, target) for o in logits) / 3
    expected = 0.95 * entropy + 0.05 * (logits - 0.8).square().mean()
    assert float(loss(logits, target)) == pytest.approx(float(expected), rel=1e-12)
    shares = sum(loss.at_step(o, target, 3) for o in logits)
    assert float(shares) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("kind", ["per_step", "time_mean"])
def test_ce_mse_is_a_mixture_with_the_error_to_one_hot_targets(kind):
    logits, target = batch()
    loss = make_loss(LossSpec(kind=kind, criterion="ce_mse", mse_weight=0.1, label_smoothing=0.2))
    seen = logits if kind == "per_step" else logits.mean(0, keepdim=True)
    hot = nn.functional.one_hot(target, 5).double()
    parts = [
        0.9 * nn.functional.cross_entropy(o, target, label_smoothing=0.2) + 0.1 * nn.functional.mse_loss(o, hot)
        for o in seen
    ]
    assert float(loss(logits, target)) == pytest.approx(float(sum(parts) / len(parts)), rel=1e-12)


def test_a_mixture_without_its_second_part_is_cross_entropy():
    logits, target = batch()
    plain = make_loss(LossSpec())(logits, target)
    for given in ({"criterion": "tet", "tet_lambda": 0.0}, {"criterion": "ce_mse", "mse_weight": 0.0}):
        assert torch.allclose(make_loss(LossSpec(**given))(logits, target), plain)


def test_objectives_with_other_numbers_have_other_text():
    # Methods remember what a step costs by the text of its criterion.
    specs = [LossSpec(criterion="tet", tet_lambda=x) for x in (0.1, 0.2)] + [LossSpec(criterion="ce_mse")]
    texts = [repr(make_loss(spec).criterion) for spec in (*specs, specs[0])]
    assert len(set(texts)) == 3
    assert texts[0] == texts[-1]
    smooth = [repr(make_loss(LossSpec(criterion="tet", label_smoothing=x)).criterion) for x in (0.0, 0.1)]
    assert smooth[0] != smooth[1]


def test_only_a_criterions_own_options_are_named():
    assert LossSpec(criterion="tet").model_dump() == {
        "kind": "per_step", "criterion": "tet", "label_smoothing": 0.0, "mse_weight": None, "tet_lambda": 1e-3,
        "tet_means": 1.0,
    }  # fmt: skip
    assert LossSpec().tet_lambda is None
    wrong_ones = [{"mse_weight": 0.1}, {"criterion": "mse", "label_smoothing": 0.1}]
    for wrong in [*wrong_ones, {"criterion": "ce_mse", "mse_weight": 2.0}]:
        with pytest.raises(ValidationError):
            LossSpec(**wrong)
    assert math.isclose(LossSpec(criterion="ce_mse").mse_weight, 0.05)
