"""What an installed ckpt needs is declared: a checkout has everything and would not show a gap."""

from __future__ import annotations

import ast
import fnmatch
import importlib.metadata
import sys
import tomllib
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
PACKAGES = ("ckpt", "runtime", "images", "transport")
# CRIU's own, linked by scripts/setup-criu: see pyproject.toml.
NOT_ON_PYPI = {"pycriu"}


def project() -> dict[str, Any]:
    return tomllib.loads((REPO / "pyproject.toml").read_text())


def test_files_that_are_no_modules_are_installed() -> None:
    data = project()["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        for file in (REPO / package).rglob("*"):
            name = str(file.relative_to(REPO / package))
            if not file.is_file() or "__pycache__" in file.parts or file.suffix == ".py":
                continue
            # setuptools' ** may be nothing at all.
            patterns = [pattern.replace("**/", "*") for pattern in data.get(package, [])]
            assert any(fnmatch.fnmatch(name, one) for one in patterns), f"{package}/{name}"


def test_every_directory_with_modules_is_a_package() -> None:
    for package in PACKAGES:
        for file in (REPO / package).rglob("*.py"):
            assert (file.parent / "__init__.py").exists(), f"{file.parent} would not be installed"


def test_dependencies_are_those_that_are_imported() -> None:
    names = importlib.metadata.packages_distributions()
    imported = set()
    for package in PACKAGES:
        for file in (REPO / package).rglob("*.py"):
            imported |= _imports(file)
    foreign = imported - set(sys.stdlib_module_names) - set(PACKAGES) - NOT_ON_PYPI
    needed = {names.get(name.split(".")[0], [name])[0] for name in foreign - {"google"}}
    if "google" in foreign:
        needed.add("protobuf")
    # pycriu's messages need it, whether or not a module of ours says so.
    needed.add("protobuf")
    declared = {
        requirement.split(">=")[0].strip() for requirement in project()["project"]["dependencies"]
    }
    assert {name.lower() for name in needed} == {name.lower() for name in declared}


def _imports(file: Path) -> set[str]:
    """The top-level modules that FILE imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found
