import textwrap

import pytest

from harness import suite
from harness.errors import UsageError
from harness.spec import CellSpec
from harness.suite.selection import parse_only
from tests.harness.distributions import PLUGINS, installed

HEAD = """
[suite]
name = "mini"
title = "A small suite"

[profiles.cpu]
threads = 2
substitute = "two epochs instead of 300"
[profiles.cpu.recipe]
epochs = 2
[profiles.cpu.set]
T = [2, 4]

[profiles.gpu]
device = "cuda"
timeout_s = 1200

[defaults]
model = { name = "net", width = 8 }
data = "toy"
batch = 16
recipe = { lr = 0.2, epochs = 300 }
seeds = [0, 1, 2]

"""
GRID = """
[[grid]]
name = "cost"
method = ["alpha", { name = "beta", segments = 4 }]
T = 8
phases = ["memory", "time"]
"""
FULL = HEAD + GRID


@pytest.fixture(autouse=True)
def acme(tmp_path_factory):
    with installed(tmp_path_factory.mktemp("acme")):
        yield


def parse(text):
    return suite.parse(text.encode(), file="mini.toml")


def swapped(old, new, text=FULL):
    assert old in text
    return text.replace(old, new, 1)


def message(text, profile="cpu", only=None):
    """The error that a suite's text gives, at reading or at expansion."""
    with pytest.raises(UsageError) as error:
        parse(text).expand(profile, only)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_suite_says_what_it_is():
    mini = parse(FULL)
    assert (mini.name, mini.title, mini.description) == ("mini", "A small suite", "")
    assert mini.profile("cpu").threads == 2
    assert mini.profile("cpu").timeout_s == 600
    assert mini.profile("cpu").substitute == "two epochs instead of 300"
    assert mini.profile("gpu").device == "cuda"
    assert len(mini.sha256) == 64
    assert parse(FULL + "# a remark\n").sha256 != mini.sha256


def test_expansion_is_the_product_in_the_files_order():
    cells = parse(FULL).expand("cpu")
    assert [(c.method.label, c.T) for c in cells] == [
        ("alpha", 2), ("alpha", 4), ("beta(segments=4, depth=[1, 2])", 2), ("beta(segments=4, depth=[1, 2])", 4),
    ]  # fmt: skip
    assert all(isinstance(c, CellSpec) for c in cells)
    assert cells == parse(FULL).expand("cpu")
    cell = cells[0]
    assert (cell.batch, cell.data.name, cell.model.options) == (16, "toy", {"width": 8})
    assert (cell.profile, cell.device, cell.precision, cell.baseline) == ("cpu", "cpu", "fp32", "alpha")
    assert cell.phases == ("memory", "time")


def test_a_grid_or_the_defaults_name_the_baseline():
    own = [c.baseline for c in parse(FULL).expand("gpu")]
    assert own == ["alpha", "alpha"]
    assert {c.baseline for c in parse(FULL + 'baseline = "beta"\n').expand("gpu")} == {"beta"}
    general = swapped("batch = 16", 'batch = 16\nbaseline = "beta"')
    assert {c.baseline for c in parse(general).expand("gpu")} == {"beta"}
    assert {c.baseline for c in parse(general + 'baseline = "alpha"\n').expand("gpu")} == {"alpha"}
    # Another baseline is another cell: the timed rounds are interleaved with it.
    assert not {c.hash for c in parse(FULL).expand("gpu")} & {c.hash for c in parse(general).expand("gpu")}


def test_profile_replaces_axes_and_recipe_keys():
    gpu = parse(FULL).expand("gpu")
    assert {c.T for c in gpu} == {8}
    assert {(c.recipe.lr, c.recipe.epochs) for c in gpu} == {(0.2, 300)}
    cpu = parse(FULL + "recipe = { lr = 0.5, epochs = 10 }\n").expand("cpu")
    assert {(c.recipe.lr, c.recipe.epochs) for c in cpu} == {(0.5, 2)}


def test_every_axis_takes_one_value_or_a_list():
    one = parse(swapped("T = 8", 'T = 8\nloss = "time_mean"\nprecision = "amp-bf16"')).expand("gpu")
    assert {(c.loss.kind, c.precision) for c in one} == {("time_mean", "amp-bf16")}
    two = parse(swapped("T = 8", 'T = [8]\nloss = ["per_step", {kind = "time_mean", criterion = "mse"}]')).expand("gpu")
    assert [(c.loss.kind, c.loss.criterion) for c in two[:2]] == [("per_step", "cross_entropy"), ("time_mean", "mse")]


def test_cells_that_train_take_every_seed_and_the_others_the_first():
    assert {c.seed for c in parse(FULL).expand("cpu")} == {0}
    train = parse(swapped('phases = ["memory", "time"]', 'phases = "train"')).expand("cpu")
    assert {c.seed for c in train} == {0, 1, 2}
    told = parse(FULL + "every_seed = true\n").expand("cpu")
    assert {c.seed for c in told} == {0, 1, 2}


def test_cells_are_unique_whichever_grid_asks():
    twice = (
        FULL
        + GRID.replace("cost", "again")
        + 'seeds = [0]\n[[grid]]\nname = "x"\nmethod = "alpha"\nT = 2\nphases = "time"\n'
    )
    cells = parse(twice).expand("gpu")
    assert len(cells) == 3
    assert len({c.hash for c in cells}) == 3


def test_identity_ignores_order_time_limit_threads_and_titles():
    base = {c.hash for c in parse(FULL).expand("cpu")}
    for old, new in [
        ("threads = 2", "threads = 1\ntimeout_s = 5"),
        ('["alpha", { name = "beta", segments = 4 }]', '[{ segments = 4, name = "beta" }, "alpha"]'),
        ('["memory", "time"]', '["time", "memory"]'),
        ("A small suite", "Another title"),
        ("segments = 4", "depth = [1, 2], segments = 4"),
    ]:
        assert {c.hash for c in parse(swapped(old, new)).expand("cpu")} == base


def test_predicted_grids_have_the_memory_phase_only():
    text = swapped('phases = ["memory", "time"]', "predicted = true")
    assert {(c.predicted, c.phases) for c in parse(text).expand("cpu")} == {(True, ("memory",))}
    assert "grid[0].phases: ['memory', 'time']: a predicted grid runs nothing. Allowed: ['memory']" in message(
        FULL + "predicted = true\n"
    )


def test_grids_belong_to_profiles():
    text = FULL + 'profiles = ["gpu"]\n'
    assert len(parse(text).expand("gpu")) == 2
    assert "profile 'cpu' has no grid" in message(text)


def test_unavailable_plugins_still_expand(tmp_path):
    with installed(tmp_path, "import nothing_of_this_name", {"snnbench.methods": {"delta": "Delta"}}, name="broken"):
        text = swapped('"alpha"', '{ name = "delta", anything = 1 }')
        cell = parse(text).expand("gpu")[0]
    assert cell.method.options == {"anything": 1}
    assert cell.baseline == "bptt"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("title =", "titel =", "mini.toml: suite.titel: unknown key. Did you mean 'title'?"),
        ('title = "A small suite"', "", "mini.toml: suite.title: missing"),
        ('"mini"', '"my suite"', "mini.toml: suite.name: 'my suite': allowed are letters, digits"),
        ("threads = 2", "thread = 2", "mini.toml: profiles.cpu.thread: unknown key. Did you mean 'threads'? Allowed: "),
        ("threads = 2", "threads = 0", "profiles.cpu.threads: 0: should be greater than or equal to 1"),
        ("threads = 2", "threads = true", "profiles.cpu.threads: True: should be a valid integer"),
        ("timeout_s = 1200", "timeout_s = inf", "profiles.gpu.timeout_s: inf: should be a finite number"),
        ('"cuda"', '"gpu"', "profiles.gpu.device: 'gpu' is not allowed. Did you mean 'cpu'? Allowed: cpu, cuda"),
        ("T = [2, 4]", "t = [2, 4]", "profiles.cpu.set.t: unknown key. Did you mean 'T'?"),
        ("T = 8", 'T = "8"', "grid[0].T[0]: '8': should be a valid integer"),
        ("T = 8", "T = 8.0", "grid[0].T[0]: 8.0: should be a valid integer"),
        ("T = 8", "T = []", "grid[0].T: []: needs at least 1 entry"),
        ("T = 8", "T = [4, 0]", "grid[0].T[1]: 0: should be greater than or equal to 1"),
        ("T = 8", "time = 8", "grid[0].time: unknown key."),
        ("T = 8", 'precision = "bf16"', "grid[0].precision[0]: 'bf16' is not allowed. Did you mean 'amp-bf16'?"),
        ("T = 8", 'loss = "mean"', "grid[0].loss[0].kind: 'mean' is not allowed. Did you mean 'time_mean'?"),
        ('"time"]', '"tim"]', "grid[0].phases[1]: 'tim' is not allowed. Did you mean 'time'?"),
        ("T = 8", 'profiles = ["cpuu"]', "grid[0].profiles[0]: unknown profile 'cpuu'. Did you mean 'cpu'?"),
        ("lr = 0.2", "lrr = 0.2", "defaults.recipe.lrr: unknown key. Did you mean 'lr'?"),
        ("lr = 0.2", "lr = -1", "defaults.recipe.lr: -1: should be greater than 0"),
        ("lr = 0.2", "weight_decay = inf", "grid[0].recipe: {'weight_decay': inf"),
        ("epochs = 2", 'epochs = "2"', "profiles.cpu.recipe.epochs: '2': should be a valid integer"),
        ("T = 8", 'recipe = { optimizer = "sdg" }', "recipe.optimizer: 'sdg' is not allowed. Did you mean 'sgd'?"),
        ("T = 8", 'baseline = "alhpa"', "grid[0].baseline: unknown method 'alhpa'. Did you mean 'alpha'?"),
        ("batch = 16", 'batch = 16\nbaseline = "b"', "mini.toml: defaults.baseline: unknown method 'b'."),
        ('"alpha"', '"alhpa"', "mini.toml: grid[0].method[0]: unknown method 'alhpa'. Did you mean 'alpha'?"),
        ("segments = 4", "segmnts = 4", "grid[0].method[1].segmnts: unknown key. Did you mean 'segments'?"),
        ("segments = 4", 'segments = "4"', "grid[0].method[1].segments: '4': should be a valid integer"),
        ("segments = 4", "segments = 1979-05-27", "grid[0].method[1]: Object of type date is not JSON serializable"),
        ('"alpha"', "7", "grid[0].method[0]: 7: should be a valid dictionary"),
        ('name = "beta", ', "", "grid[0].method[1].name: missing"),
        ("width = 8", "wide = 8", "defaults.model[0].wide: unknown key. Did you mean 'width'? Allowed: width"),
        ('data = "toy"', "", "mini.toml: grid[0].data: missing; give it in this grid or in [defaults]"),
        ('data = "toy"', 'data = "toys"', "defaults.data[0]: unknown data set 'toys'. Did you mean 'toy'?"),
        ("[[grid]]", "[[gird]]", "mini.toml: gird: unknown key. Did you mean 'grid'?"),
        ('name = "cost"', "", "mini.toml: grid[0].name: missing"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_error_that_names_place_and_remedy(old, new, expected):
    assert expected in message(swapped(old, new))


def test_toml_syntax_errors_name_file_and_line():
    assert "mini.toml: not valid TOML: Invalid value (at line 29, column 5)" in message(swapped("T = 8", "T = eight"))
    lines = len(FULL.splitlines())
    assert f"(at line {lines + 1}, the end of the file)" in message(FULL + "T = [1,")
    with pytest.raises(UsageError, match=r"mini\.toml: not UTF-8"):
        suite.parse(b"title = '\xff'", "mini.toml")


def test_no_grid_and_no_profile_are_errors():
    assert "mini.toml: grid: missing" in message(HEAD)
    assert "mini.toml: grid: []: needs at least 1 entry" in message("grid = []\n" + HEAD)
    bare = '[suite]\nname = "mini"\ntitle = "x"\n' + GRID
    assert "mini.toml: profiles: missing" in message(bare)


def test_unknown_profile():
    assert message(FULL, "cpuu") == "mini.toml: unknown profile 'cpuu'. Did you mean 'cpu'? Allowed: cpu, gpu"


def test_grid_names_are_unique():
    assert "mini.toml: grid[1].name: 'cost' is grid[0]'s name already" in message(FULL + GRID)


def test_settings_that_would_share_a_label_are_refused(tmp_path):
    loose = PLUGINS.replace("segments: int = 2", "segments: int | str = 2")
    text = swapped('"alpha"', '{ name = "gamma", segments = "4" }, { name = "gamma", segments = 4 }')
    points = {"snnbench.methods": {"gamma": "Beta"}}
    with installed(
        tmp_path, loose.replace('"beta", "biased"', '"gamma", "biased"').replace('"alpha"', '"gamma"'), points, "loose"
    ):
        assert "two settings of method share the label 'gamma(segments=4, depth=[1, 2])'" in message(text)


def test_load_by_path_and_by_name(tmp_path):
    file = tmp_path / "mini.toml"
    file.write_text(FULL)
    assert suite.load(file).name == suite.load(str(file)).name == "mini"
    with pytest.raises(UsageError, match=r"absent\.toml: cannot be read: No such file"):
        suite.load(tmp_path / "absent.toml")


def package(root, files):
    folder = root / "acme_suites"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(textwrap.dedent(text))


def test_installed_suites_are_found_by_name(tmp_path):
    with installed(tmp_path, "", {}, "holder") as root:
        package(root, {"mini.toml": FULL, "other.toml": FULL, "notes.txt": ""})
        (root / "holder-1.2.dist-info" / "entry_points.txt").write_text("[snnbench.suites]\nx = acme_suites\n")
        assert {"mini", "other"} <= suite.names().keys()
        assert suite.load("mini").name == "mini"
        with pytest.raises(UsageError, match=r"unknown suite 'minni'\. Did you mean 'mini'\?"):
            suite.load("minni")
        with pytest.raises(
            UsageError, match=r"other\.toml: suite\.name: 'mini': an installed suite is called as its file"
        ):
            suite.load("other")


class TestOnly:
    def labels(self, **only):
        return [(c.method.name, c.T) for c in parse(FULL).expand("cpu", only)]

    @pytest.mark.parametrize("name", ["beta", "beta(segments=4)", "beta(segments=4, depth=[1, 2])"])
    def test_methods_by_name_and_by_label(self, name):
        assert self.labels(method=[name]) == [("beta", 2), ("beta", 4)]

    def test_axes_narrow_and_values_widen(self):
        assert self.labels(method=["alpha", "beta"], T=["4"]) == [("alpha", 4), ("beta", 4)]

    @pytest.mark.parametrize(
        ("axis", "value", "count"),
        [
            ("model", "net", 4), ("data", "toy", 4), ("batch", "16", 4), ("seed", "0", 4), ("precision", "fp32", 4),
            ("T", "2", 2), ("phases", "time", 4), ("predicted", "false", 4), ("loss", "per_step", 4),
            ("device", "cpu", 4), ("grid", "cost", 4),
        ],
    )  # fmt: skip
    def test_every_axis(self, axis, value, count):
        assert len(self.labels(**{axis: [value]})) == count

    def test_unknown_axis_and_value_and_empty_combination(self):
        assert "--only methd=...: unknown axis 'methd'. Did you mean 'method'? Allowed: T, batch" in message(
            FULL, only={"methd": ["alpha"]}
        )
        text = message(FULL, only={"method": ["beta", "alfa"]})
        assert (
            "--only method=alfa: unknown method in mini (profile cpu) 'alfa'. Did you mean 'alpha'? Allowed: alpha"
            in text
        )
        assert "Allowed: 2, 4" in message(FULL, only={"T": ["8"]})
        uneven = FULL + '[[grid]]\nname = "x"\nmethod = "alpha"\nT = 16\nbatch = 1\nphases = "time"\n'
        assert message(uneven, "gpu", {"method": ["beta"], "T": ["16"]}) == (
            "--only T=16: the other --only leave no such cell of mini (profile gpu). Allowed: 8"
        )

    def test_parse_only_keeps_commas_inside_brackets(self):
        assert parse_only(["method=alpha,beta(segments=4, depth=[1, 2])", "T=4", "method= x"]) == {
            "method": ["alpha", "beta(segments=4, depth=[1, 2])", "x"],
            "T": ["4"],
        }

    @pytest.mark.parametrize(
        ("item", "expected"),
        [
            ("method", "write axis=value"),
            ("T=", "write axis=value"),
            ("sed=4", "Did you mean 'seed'"),
            ("T=,", "write axis"),
        ],
    )
    def test_parse_only_refuses(self, item, expected):
        with pytest.raises(UsageError, match=expected):
            parse_only([item])
