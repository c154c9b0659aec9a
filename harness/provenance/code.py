"""What code is running: a hash of its sources, its git commit, the versions of what it stands on."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import subprocess
from importlib import metadata
from pathlib import Path

from harness.provenance.facts import NotAvailableError

DISTRIBUTION = "snnbench"
GROUPS = ("snnbench.methods", "snnbench.models", "snnbench.datasets")
NUMERIC = (
    "torch", "torchvision", "triton", "spikingjelly", "tonic", "numpy", "scipy", "scikit-learn", "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13", "nvidia-cublas-cu12", "nvidia-cublas",
)  # fmt: skip
"""Distributions whose version can change a measured number."""
PACKAGES = ("snnbench", *NUMERIC, "pandas", "pyarrow", "pydantic", "nvidia-ml-py", "submitit")
"""Distributions whose version a reader may ask for."""
SOURCES = (".py", ".cu", ".cuh", ".cpp", ".h")
UNMEASURED = frozenset({"cli", "compare", "regression", "__pycache__"})
"""Folders whose code no cell runs: a change there makes no record stale."""
GIT_TIMEOUT_S = 2.0


def package_folders() -> dict[str, Path]:
    """Import packages whose code a cell runs, by name: this one, and those that our own plugins come from."""
    names = {"harness"}
    for group in GROUPS:
        points = metadata.entry_points(group=group)
        names |= {p.module.split(".")[0] for p in points if p.dist is not None and p.dist.name == DISTRIBUTION}
    return {name: folder for name in sorted(names) if (folder := _folder(name)) is not None}


@functools.cache
def source_hash() -> str:
    """:func:`hash_sources` of :func:`package_folders`, taken once a process.

    Call it when the code is imported: a file that is edited while the process runs is not the code that runs.
    """
    return hash_sources(package_folders())


def hash_sources(folders: dict[str, Path]) -> str:
    """SHA-256 over the source files of some packages, by name; independent of where they are installed.

    Args:
        folders: package name to folder.
    """
    total = hashlib.sha256()
    for name, folder in sorted(folders.items()):
        for path in sorted(folder.rglob("*")):
            inner = path.relative_to(folder)
            if path.suffix in SOURCES and not UNMEASURED.intersection(inner.parts):
                content = path.read_bytes()
                total.update(f"{name}/{inner.as_posix()}\0{len(content)}\0".encode())
                total.update(content)
    return total.hexdigest()


def versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # absent from the table: not installed
    return found


def plugin_distributions() -> dict[str, str]:
    """Versions of the other distributions that register plugins."""
    points = [point for group in GROUPS for point in metadata.entry_points(group=group)]
    found = {p.dist.name: p.dist.version for p in points if p.dist is not None and p.dist.name != DISTRIBUTION}
    return dict(sorted(found.items()))


def git_commit(folder: Path) -> str:
    """Commit of the checkout that holds ``folder``.

    Raises:
        NotAvailableError: no checkout, no commit yet, no git, or git took too long.
    """
    return _git(folder, "rev-parse", "HEAD")


def git_dirty(folder: Path, paths: list[Path]) -> bool:
    """Whether files under ``paths`` differ from the commit, or are not in it.

    Raises:
        NotAvailableError: as :func:`git_commit`.
    """
    inside = [str(path) for path in paths if path.is_relative_to(folder)]
    return bool(_git(folder, "status", "--porcelain", "--untracked-files=normal", "--", *inside))


def git_root(folder: Path) -> Path:
    """Root of the checkout that has ``folder`` among its files; not of one that merely surrounds it.

    Raises:
        NotAvailableError: as :func:`git_commit`; also for an installed copy that git ignores, as in ``.venv``.
    """
    root = Path(_git(folder, "rev-parse", "--show-toplevel"))
    try:
        _git(folder, "check-ignore", "--quiet", str(folder))
    except NotAvailableError:
        return root
    raise NotAvailableError(f"installed code, not a checkout: git ignores it in {root.name}")


def _git(folder: Path, *arguments: str) -> str:
    # safe.directory: a checkout of another user (a container's mount) is only read here
    command = ["git", "-c", "safe.directory=*", "-C", str(folder), "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise NotAvailableError("git is not installed") from None
    except subprocess.TimeoutExpired:
        raise NotAvailableError(f"git took more than {GIT_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise NotAvailableError(lines[0] if lines else f"git {arguments[0]} exited with {done.returncode}")
    return done.stdout.strip()


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).resolve()
