"""Suite files: a grid of cells in TOML, checked and expanded."""

from harness.suite.loading import Suite, load, names, parse

__all__ = ["Suite", "load", "names", "parse"]
