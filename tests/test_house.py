"""The house: which package may import which, and that modules stay readable."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("harness", "methods", "suites", "reports", "snnbench")
GROUND_FLOOR = {"harness.contracts", "harness.ledger"}
READABLE = {
    "harness.cli.table",
    "harness.store",
    "harness.record",
    "harness.spec",
    "harness.stats",
    "harness.errors",
    "harness.validation",
}


def modules(package: str) -> list[Path]:
    return [p for p in sorted((ROOT / package).rglob("*.py")) if "regression" not in p.parts]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(path: Path, package: str) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] == package}


@pytest.mark.parametrize("path", modules("harness"), ids=lambda p: str(p.relative_to(ROOT)))
def test_harness_imports_no_plugin_and_no_report(path: Path) -> None:
    for package in ("methods", "suites", "reports", "snnbench"):
        assert not inside(path, package)


@pytest.mark.parametrize("package", ["methods", "suites"])
def test_plugins_import_the_ground_floor_only(package: str) -> None:
    for path in modules(package):
        for name in inside(path, "harness"):
            allowed = any(name == g or name.startswith(g + ".") for g in GROUND_FLOOR) or name == "harness"
            assert allowed, f"{path.relative_to(ROOT)} imports {name}"
        other = "suites" if package == "methods" else "methods"
        assert not inside(path, other), path


def test_reports_read_and_run_nothing() -> None:
    for path in modules("reports"):
        for name in inside(path, "harness"):
            allowed = any(name == r or name.startswith(r + ".") for r in READABLE) or name == "harness"
            assert allowed, f"{path.relative_to(ROOT)} imports {name}"
        for package in ("torch", "methods", "suites", "snnbench"):
            assert not inside(path, package), f"{path.relative_to(ROOT)} imports {package}"


def test_the_public_page_holds_no_logic() -> None:
    body = ast.parse((ROOT / "snnbench" / "__init__.py").read_text()).body
    assert all(isinstance(node, (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign)) for node in body)


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_stay_readable(package: str) -> None:
    long = {str(p.relative_to(ROOT)): n for p in modules(package) if (n := len(p.read_text().splitlines())) > 400}
    assert not long
