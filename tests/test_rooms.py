"""Which part and which room may import which: the rules, the source and the documentation agree. No circles.

An import counts wherever it stands: in a function and under TYPE_CHECKING too.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = {
    "proto": "crosscope_proto",
    "store": "crosscope_store",
    "server": "crosscope_server",
    "worker": "crosscope_worker",
    "client": "crosscope",
    "local": "crosscope_local",
}
ENTRY = "entry"
"""What puts a part together: nothing imports it."""
TOP = "top"
"""The modules that lie in no folder, or in a private one: what all rooms stand on; of the client the SDK."""
ENTRIES = {
    "crosscope_server": {"__main__", "serve"},
    "crosscope_worker": {"__init__", "__main__"},
}
PART_RULES: dict[str, set[str]] = {
    "proto": set(),
    "store": {"proto"},
    "server": {"proto", "store"},
    "worker": {"proto", "store"},
    "client": {"proto"},
    "local": {"proto", "store", "client"},
}
ROOM_RULES: dict[str, dict[str, set[str]]] = {
    "worker": {
        TOP: set(),
        "tokenizer": set(),
        "models": set(),
        "dictionary": set(),
        "data": {"tokenizer", "models"},
        "training": {"dictionary", "data"},
        "effects": {"tokenizer", "models", "dictionary"},
        "analysis": {"tokenizer", "models", "dictionary", "data", "effects"},
        "labelling": {"tokenizer", "models", "effects"},
        "recipes": {"tokenizer", "models", "dictionary", "data", "training", "analysis", "labelling"},
        "cluster": {"training", "recipes"},
        "serve": {"tokenizer", "models", "dictionary", "effects"},
        "demo": set(),
        "jobs": set(),
        ENTRY: {"dictionary", "serve", "jobs"},
    },
    "server": {
        TOP: set(),
        "access": set(),
        "annotations": set(),
        "search": set(),
        "services": {"annotations", "search"},
        "jobs": set(),
        ENTRY: {"access", "annotations", "search", "services", "jobs"},
    },
    "client": {
        TOP: set(),
        "cli": set(),
        "app": set(),
    },
}
"""On top of what is named, every room may import TOP."""


@cache
def modules() -> dict[str, Path]:
    """All modules by name; what is generated from .proto files, and imports only itself, is left out."""
    found: dict[str, Path] = {}
    for folder, package in PARTS.items():
        for path in (ROOT / folder / package).rglob("*.py"):
            if "_pb2" not in path.name:
                name = ".".join(path.relative_to(ROOT / folder).with_suffix("").parts)
                found[name.removesuffix(".__init__")] = path
    return found


def imports_of(path: Path) -> Iterator[str]:
    """Names of all that a file imports: of `from a import b` it is a.b if that is a module, else a."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by dots"
            assert node.module
            for each in node.names:
                inner = f"{node.module}.{each.name}"
                yield inner if inner in modules() else node.module


@cache
def arrows() -> dict[str, set[str]]:
    """Which of our modules each of our modules imports."""
    parts = set(PARTS.values())
    return {
        module: {name for name in imports_of(path) if name != module and name.partition(".")[0] in parts}
        for module, path in modules().items()
    }


def part_of(module: str) -> str:
    top = module.partition(".")[0]
    return next(part for part, package in PARTS.items() if package == top)


def room_of(module: str) -> str:
    package, _, rest = module.partition(".")
    first = rest.partition(".")[0] or "__init__"
    if first in ENTRIES.get(package, set()):
        return ENTRY
    is_room = (ROOT / part_of(module) / package / first).is_dir() and not first.startswith("_")
    return first if is_room else TOP


def circles(graph: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """The strongly connected components of more than one node: nodes that reach each other."""
    found: set[frozenset[str]] = set()
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        path.append(node)
        for target in graph.get(node, ()):
            if target not in order:
                visit(target)
                lowest[node] = min(lowest[node], lowest[target])
            elif target in path:
                lowest[node] = min(lowest[node], order[target])
        if lowest[node] == order[node]:
            component = path[path.index(node) :]
            del path[path.index(node) :]
            if len(component) > 1:
                found.add(frozenset(component))

    for node in graph:
        if node not in order:
            visit(node)
    return found


def rooms(part: str) -> dict[str, set[str]]:
    """Which rooms of a part each of its rooms imports."""
    found: dict[str, set[str]] = {}
    for module, targets in arrows().items():
        if part_of(module) == part:
            inside = {room_of(target) for target in targets if part_of(target) == part}
            found.setdefault(room_of(module), set()).update(inside - {room_of(module)})
    return found


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}) == {
        frozenset("abc"),
        frozenset("de"),
    }
    assert circles({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}}) == set()


def test_a_part_imports_the_parts_that_its_rule_names_and_nothing_private_of_them() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for module, targets in arrows().items():
        for target in targets:
            if part_of(target) != part_of(module):
                found[part_of(module)].add(part_of(target))
                assert not re.search(r"\._[a-z]", target), f"{module} imports {target}"
    assert {part: found[part] for part in PARTS} == PART_RULES


@pytest.mark.parametrize("part", ROOM_RULES)
def test_a_room_imports_the_rooms_that_its_rule_names(part: str) -> None:
    found, rules = rooms(part), ROOM_RULES[part]
    assert found.keys() == rules.keys()
    for room, allowed in rules.items():
        more, fewer = found[room] - allowed - {TOP}, allowed - found[room]
        assert not more, f"{part}/{room} imports {more}, which its rule does not name"
        assert not fewer, f"{part}/{room} does not import {fewer}, which its rule names"


@pytest.mark.parametrize("part", PARTS)
def test_no_circle_between_rooms(part: str) -> None:
    assert circles(rooms(part)) == set()


def test_no_circle_between_modules() -> None:
    assert circles(arrows()) == set()


def test_the_documentation_has_the_same_table() -> None:
    heading = "## Who may import whom\n"
    page = next(text for path in (ROOT / "docs").rglob("*.md") if heading in (text := path.read_text()))
    section = page.partition(heading)[2].partition("\n## ")[0]
    rows = {
        (cells[1].strip(" `"), cells[2].strip(" `")): set(re.findall(r"\w+", cells[3]))
        for cells in (line.split("|") for line in section.splitlines() if line.startswith("| `"))
    }
    rules = {(part, ""): allowed for part, allowed in PART_RULES.items()}
    rules |= {(part, room): allowed for part, of in ROOM_RULES.items() for room, allowed in of.items()}
    assert {key: row - {"nothing"} for key, row in rows.items()} == rules
