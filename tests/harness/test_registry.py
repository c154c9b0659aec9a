import pytest

from harness import registry
from harness.contracts import Unavailable
from harness.errors import UsageError
from harness.spec import Ref
from tests.harness.distributions import PLUGINS, installed


@pytest.fixture
def acme(tmp_path):
    with installed(tmp_path) as root:
        yield root


def fault(tmp_path, change, entry="alpha", kind="methods", points=None):
    """Why the registry refuses a plugin whose source was changed."""
    old, new = change
    assert old in PLUGINS
    with installed(tmp_path, PLUGINS.replace(old, new), points or {f"snnbench.{kind}": {entry: entry.title()}}):
        found = registry.entries(kind)[entry]
        assert found.plugin is None
        return found.unavailable


def test_third_party_plugins_are_listed_with_their_distribution(acme):
    found = registry.entries("methods")["beta"]
    assert found.distribution == "acme 1.2"
    assert found.target.endswith(":Beta")
    assert found.plugin.__name__ == "Beta"
    assert found.unavailable is None
    assert registry.entries("models")["net"].plugin is registry.plugin("models", "net")
    assert list(registry.entries("methods")) == sorted(registry.entries("methods"))


def test_built_in_plugins_come_the_same_way():
    found = registry.entries("methods")["bptt"]
    assert found.distribution.startswith("snnbench ")
    assert found.unavailable is None


def test_look_up_is_cached_until_refreshed(tmp_path):
    before = registry.entries("models")
    assert registry.entries("models") is before
    with installed(tmp_path):
        assert "net" in registry.entries("models")
    assert "net" not in registry.entries("models")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise RuntimeError('the driver is too old')", "RuntimeError: the driver is too old"),
        ("def (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("x = 1", "AttributeError"),
    ],
)
def test_failing_import_is_listed_with_its_reason_and_harms_no_other(tmp_path, source, reason):
    with installed(tmp_path, source, {"snnbench.methods": {"alpha": "Alpha"}}):
        assert reason in registry.entries("methods")["alpha"].unavailable
        assert registry.entries("methods")["bptt"].plugin is not None
        with pytest.raises(Unavailable, match="method 'alpha' cannot be used: import of") as error:
            registry.plugin("methods", "alpha")
        assert "acme 1.2" in error.value.remedy


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (('"-", "exact"', '"-", "nearly"'), "gradient must be 'exact' or 'biased', is 'nearly'"),
        (('"alpha", "exact", "-"', '"alpha", "exact", ""'), "paper must be text, is ''"),
        (
            ('"alpha", "exact", "-"', '"alfa", "exact", "-"'),
            "its name is 'alfa', but its entry point is called 'alpha'",
        ),
        (('"exact", "alpha"', '"exact", "gamma"'), "baseline must be one of alpha, "),
        (("class Alpha(Method)", "class Alpha"), "is no subclass of harness.contracts.Method"),
        (("def step", "def stride"), "it lacks step()"),
        (
            ("    name, summary, paper, gradient, base", "    options = int; name, summary, paper, gradient, base"),
            "options must",
        ),
    ],
)
def test_malformed_method_is_listed_with_what_is_wrong(tmp_path, change, reason):
    assert reason in fault(tmp_path, change)


@pytest.mark.parametrize("model", ["'changed: '", "'changed'", "'different'", "None"])
def test_a_changed_model_has_to_say_what_changed(tmp_path, model):
    points = {"snnbench.methods": {"alpha": "Alpha", "beta": "Beta"}}
    reason = fault(tmp_path, ('"changed: narrower"', model), entry="beta", points=points)
    assert f"model must be 'same' or 'changed: what', is {model}" in reason


def test_numerics_are_checked(tmp_path):
    points = {"snnbench.methods": {"alpha": "Alpha", "beta": "Beta"}}
    reason = fault(tmp_path, ('"reduced"', '"lower"'), entry="beta", points=points)
    assert "numerics must be 'same' or 'reduced', is 'lower'" in reason


def test_missing_attribute_says_missing(tmp_path):
    change = ("name, summary, paper, gradient, baseline = ", "name, summary, _, gradient, baseline = ")
    assert "paper must be text, is missing" in fault(tmp_path, change)


@pytest.mark.parametrize(
    ("kind", "entry", "change", "reason"),
    [
        ("models", "net", ('"here", NetOptions', "None, NetOptions"), "source must be text, is None"),
        ("models", "net", ("def build", "def make"), "it lacks build()"),
        ("datasets", "toy", ("def info", "def facts"), "it lacks info()"),
        ("datasets", "toy", ("Toy(DataSource)", "Toy(ModelSource)"), "no subclass of harness.contracts.DataSource"),
    ],
)
def test_malformed_models_and_data(tmp_path, kind, entry, change, reason):
    assert reason in fault(tmp_path, change, entry, kind)


def test_one_name_from_two_distributions_names_both(acme, tmp_path):
    with (
        installed(tmp_path, name="rival"),
        pytest.raises(UsageError, match="method 'alpha' is registered twice") as error,
    ):
        registry.entries("methods")
    assert "acme 1.2" in str(error.value)
    assert "rival 1.2" in str(error.value)


def test_unknown_names_suggest_the_nearest(acme):
    with pytest.raises(
        UsageError, match=r"--method: unknown method 'bet'\. Did you mean 'beta'\? Allowed: alpha, .*\bbptt\b"
    ):
        registry.plugin("methods", "bet", "--method")
    with pytest.raises(UsageError, match=r"unknown kind of plugin 'method'\. Did you mean 'methods'\?"):
        registry.entries("method")


def test_complete_fills_in_defaults_and_keeps_json_types(acme):
    ref = registry.complete("methods", "beta", {"segments": 3}, "x")
    assert ref == Ref(name="beta", options={"segments": 3, "depth": [1, 2]})
    assert registry.complete("methods", "beta", {"depth": [4]}, "x").options["depth"] == [4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"segment": 3},
            r"quick\.toml: grid\[0\]\.method\[1\]\.segment: unknown key\. Did you mean 'segments'\? Allowed: depth, ",
        ),
        ({"segments": "3"}, r"grid\[0\]\.method\[1\]\.segments: '3': should be a valid integer"),
        ({"segments": 2.5}, r"segments: 2\.5: should be a valid integer"),
        ({"depth": [1, True]}, r"method\[1\]\.depth\[1\]: True: should be a valid integer"),
        ({"segments": object()}, r"method\[1\]: Object of type object is not JSON serializable"),
        ({"segment": 1, "depth": 2}, r"also wrong: \w+"),
    ],
)
def test_bad_options_are_one_clear_error(acme, options, message):
    with pytest.raises(UsageError, match=message) as error:
        registry.complete("methods", "beta", options, "quick.toml: grid[0].method[1]")
    assert "\n" not in str(error.value)


def test_required_option_left_out(acme):
    with pytest.raises(UsageError, match=r"--model\.width: missing"):
        registry.complete("models", "net", {}, "--model")


def test_create_gives_a_fresh_instance_with_checked_options(acme):
    ref = registry.complete("methods", "beta", {"segments": 5}, "x")
    one, other = registry.create("methods", ref), registry.create("methods", ref)
    assert one is not other
    assert one.opt.segments == 5
    assert one.opt.depth == (1, 2)
    with pytest.raises(UsageError, match=r"method beta\.segmnts: unknown key"):
        registry.create("methods", Ref(name="beta", options={"segmnts": 5}))


def test_options_without_a_place_in_json_are_refused():
    with pytest.raises(UsageError, match="finite numbers"):
        registry.reference("beta", {"lr": float("nan")}, "x")


def test_short_label_leaves_defaults_out(acme):
    full = registry.complete("methods", "beta", {"segments": 3}, "x")
    assert full.label == "beta(segments=3, depth=[1, 2])"
    assert registry.short_label("methods", full) == "beta(segments=3)"
    assert registry.short_label("methods", registry.complete("methods", "beta", {}, "x")) == "beta"
    assert registry.short_label("methods", Ref(name="gone", options={"a": 1})) == "gone(a=1)"
