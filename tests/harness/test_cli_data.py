"""``snnbench data``: what users read about data sets, and exit codes."""

import re
from dataclasses import replace

import pytest
from click.testing import CliRunner

from harness import cli, registry
from suites.datasets.mnist import MNIST
from tests.harness.distributions import PLUGINS, POINTS, installed
from tests.suites import datafiles
from tests.suites.datafiles import snapshot


def call(*arguments):
    return CliRunner().invoke(cli.snnbench, ["data", *arguments])


def row(said, name):
    """The columns of a data set's row."""
    (line,) = [line for line in said.output.splitlines() if line.startswith(f"{name} ")]
    return re.split(r"\s{2,}", line.strip(), maxsplit=4)


@pytest.fixture
def root(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("SNNBENCH_DATA", str(folder))
    return folder


def test_status_shows_every_data_set_and_changes_nothing(root):
    said = call("status")
    assert said.exit_code == 0
    shown = {line.split()[0]: line.split()[1] for line in said.output.splitlines()[1:]}
    assert shown.keys() == registry.entries("datasets").keys()
    for name, entry in registry.entries("datasets").items():
        from_files = "allow_variant" in entry.plugin.options.model_fields
        assert shown[name] == ("missing" if from_files else "embedded")
    assert {"digits", "shape"} < {name for name, state in shown.items() if state == "embedded"}
    assert {"cifar10", "nmnist", "imagenet", "shd"} < {name for name, state in shown.items() if state == "missing"}
    assert list(root.iterdir()) == []


def test_status_of_a_missing_set_says_which_file_goes_where(root):
    _, state, size, where, means = row(call("status", "cifar10"), "cifar10")
    assert (state, size, where) == ("missing", "-", str(root / "cifar-10-batches-py"))
    assert f"https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz into {root}" in means
    assert not means.startswith("cifar10:")


def test_status_tells_a_variant_from_damage_by_what_the_user_says(root):
    datafiles.cifar10(root)
    before = snapshot(root)
    _, state, _, _, means = row(call("status", "cifar10"), "cifar10")
    assert state == "damaged"
    assert "data_batch_1 is not the published file: its md5 is" in means
    _, state, size, _, means = row(call("status", "cifar10", "--allow-variant"), "cifar10")
    assert (state, size) == ("variant", "211 KiB")
    assert means.startswith("checksums differ from the published ones: data_batch_1")
    assert snapshot(root) == before


def test_an_unknown_name_is_a_usage_error(root):
    said = call("status", "cifar11")
    assert said.exit_code == 2
    assert "unknown data set 'cifar11'. Did you mean 'cifar10'?" in said.output


def test_fetching_what_comes_with_the_installation_is_fine(root):
    said = call("fetch", "digits", "shape")
    assert said.exit_code == 0
    assert said.output.splitlines()[0] == "digits: embedded, comes with the installation"


def test_fetching_without_a_network_says_which_file_goes_where_and_exits_with_1(root, monkeypatch):
    closed = tuple(replace(d, urls=(f"http://127.0.0.1:9/{d.name}",)) for d in MNIST.downloads)
    monkeypatch.setattr(MNIST, "downloads", closed)
    said = call("fetch", "mnist", "digits")
    assert said.exit_code == 1
    (line,) = [line for line in said.output.splitlines() if line.startswith("mnist: ")]
    for download in closed:
        assert download.urls[0] in line
    assert f"into {root / 'MNIST' / 'raw'}" in line
    assert "digits: embedded" in said.output


def test_fetching_a_set_that_needs_a_registration_says_so(root):
    said = call("fetch", "imagenet")
    assert said.exit_code == 1
    assert "image-net.org" in said.output


def test_fetching_what_is_here_and_accepted_is_fine(root):
    datafiles.cifar10(root)
    assert call("fetch", "cifar10").exit_code == 1
    said = call("fetch", "cifar10", "--allow-variant")
    assert said.exit_code == 0
    assert said.output.startswith("cifar10: variant")


def test_a_data_set_of_another_package_needs_neither_status_nor_fetch(tmp_path, root):
    broken = {"snnbench.datasets": {"toy": "Toy", "torn": "no_such_module.here:Torn"}}
    with installed(tmp_path, PLUGINS, POINTS | broken):
        said, fetched = call("status", "toy", "torn", "--allow-variant"), call("fetch", "toy")
        failed = call("fetch", "torn")
    assert row(said, "toy")[1] == "embedded"
    assert row(said, "torn")[1] == "unavailable"
    assert "no_such_module" in row(said, "torn")[4]
    assert (fetched.exit_code, failed.exit_code) == (0, 1)


def test_help_names_the_folder():
    assert "$SNNBENCH_DATA" in call("--help").output
