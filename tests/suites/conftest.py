"""Data folders: one made once for all tests here, and a fresh one for tests that damage it."""

import pytest

from suites.datasets import digit_source
from suites.datasets.digit_events import DigitEvents

STEPS = 4


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A data folder that holds the events and their frames at T = 4."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNNBENCH_DATA", str(folder))
        digit_source.load_images.cache_clear()
        DigitEvents().prepare(STEPS)
    return folder


@pytest.fixture
def data(prepared, monkeypatch):
    """The prepared folder in use; not to be changed."""
    monkeypatch.setenv("SNNBENCH_DATA", str(prepared))
    return prepared


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty data folder in use."""
    folder = tmp_path / "data"
    monkeypatch.setenv("SNNBENCH_DATA", str(folder))
    digit_source.load_images.cache_clear()
    return folder


@pytest.fixture
def no_folder(tmp_path, monkeypatch):
    """A data folder that nothing can be written to, not even by root: its parent is a file."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SNNBENCH_DATA", str(tmp_path / "file" / "data"))
    digit_source.load_images.cache_clear()
