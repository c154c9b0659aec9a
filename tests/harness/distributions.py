"""Installs a third-party distribution for a test: modules and a dist-info folder on the import path."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import sys
from pathlib import Path

from harness import registry

_NUMBER = itertools.count()

PLUGINS = """
from harness.contracts import DataInfo, DataSource, Method, ModelSource, Options


class SegmentOptions(Options):
    segments: int = 2
    depth: tuple[int, ...] = (1, 2)


class Alpha(Method):
    name, summary, paper, gradient, baseline = "alpha", "exact", "-", "exact", "alpha"

    def step(self, model, x, y, loss, update):
        raise NotImplementedError


class Beta(Alpha):
    name, gradient, model, numerics, options = "beta", "biased", "changed: narrower", "reduced", SegmentOptions


class NetOptions(Options):
    width: int


class Net(ModelSource):
    name, summary, source, options = "net", "a net", "here", NetOptions

    def build(self, sample, classes):
        raise NotImplementedError


class Toy(DataSource):
    name, summary = "toy", "a toy"

    def info(self):
        return DataInfo((1, 2, 2), 2, "here")

    def load(self, steps):
        raise NotImplementedError
"""

POINTS = {
    "snnbench.methods": {"alpha": "Alpha", "beta": "Beta"},
    "snnbench.models": {"net": "Net"},
    "snnbench.datasets": {"toy": "Toy"},
}


@contextlib.contextmanager
def installed(folder: Path, source: str = PLUGINS, points: dict[str, dict[str, str]] = POINTS, name: str = "acme"):
    """A distribution called ``name`` with one module; the registry knows it inside the block only.

    Args:
        folder: where to put it.
        source: the module's text.
        points: by entry-point group, names and what they load: an attribute of the module, or ``module:attribute``.
    """
    module = f"{name}_plugins_{next(_NUMBER)}"
    root = folder / f"site-{module}"
    info = root / f"{name}-1.2.dist-info"
    info.mkdir(parents=True)
    (root / f"{module}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = []
    for group, entries in points.items():
        lines.append(f"[{group}]")
        lines += [f"{key} = {value if '.' in value else f'{module}:{value}'}" for key, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    sys.path.append(str(root))
    importlib.invalidate_caches()
    registry.refresh()
    try:
        yield root
    finally:
        sys.path.remove(str(root))
        sys.modules.pop(module, None)
        importlib.invalidate_caches()
        registry.refresh()
