"""Code that a user brings along: ``module:factory``, imported from the current folder as ``python -m`` would."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torch import nn

from harness.errors import UsageError

OURS = ("harness", "methods", "suites", "reports", "snnbench")
"""Import names that are taken."""


def import_here() -> None:
    """Make modules of the current folder importable.

    Raises:
        UsageError: a package or module there has the name of one of ours.
    """
    here = Path.cwd()
    for name in OURS:
        spec = importlib.util.find_spec(name)
        ours = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        for theirs in (here / name, here / f"{name}.py"):
            package = theirs.is_dir() and (any(theirs.glob("*.py")) or any(theirs.glob("*/*.py")))
            if (package or theirs.is_file()) and ours is not None and theirs.resolve() not in (ours, ours.parent):
                raise UsageError(
                    f"{theirs} has the import name of snnbench's own {name!r} ({ours}); only one of them can be "
                    "imported: rename yours, or run snnbench from another folder"
                )
    if str(here) not in sys.path:
        sys.path.insert(0, str(here))


def load(factory: str) -> nn.Module:
    """The model that ``module:factory`` makes; weights come from torch's global generator.

    Raises:
        UsageError: it cannot be imported or called, or gives no module.
    """
    _, function = _found(factory)
    try:
        model = function()
    except Exception as error:  # a user's code may fail in any way
        raise UsageError(f"{factory}: calling it failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"{factory}: has to give a torch.nn.Module, gives {type(model).__name__}")
    return model


def fingerprint(factory: str, model: nn.Module) -> str:
    """Sixteen hex digits of the factory's file and the model's structure: tells an edited model from the one before."""
    module, _ = _found(factory)
    try:
        text = inspect.getsource(module)
    except (OSError, TypeError):
        text = ""
    shapes = [(name, tuple(value.shape)) for name, value in model.state_dict().items()]
    return hashlib.sha256(f"{text}\n{model!r}\n{shapes}".encode()).hexdigest()[:16]


def _found(factory: str) -> tuple[ModuleType, Callable[[], object]]:
    name, _, attribute = factory.partition(":")
    if not name or not attribute:
        raise UsageError(f"{factory!r}: allowed is module:factory, e.g. mynet:make for make() in mynet.py")
    try:
        module = importlib.import_module(name)
    except Exception as error:
        raise UsageError(
            f"{factory}: module {name!r} cannot be imported from {Path.cwd()}: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{factory}: {name!r} has no callable {attribute!r}. Allowed: {', '.join(names) or '(none)'}")
    return module, function
