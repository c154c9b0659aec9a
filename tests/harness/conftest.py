"""Shared fixtures of the engine's tests."""

from __future__ import annotations

import pytest

from harness import registry

FAST = ("bptt", "checkpoint-compress", "sltt")
"""Methods that every run tests; the others' share of these tests is marked slow (``tox -e slow``)."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``method`` runs once for every registered method."""
    if "method" in metafunc.fixturenames:
        names = sorted(registry.entries("methods"))
        marked = [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in names]
        metafunc.parametrize("method", marked)
