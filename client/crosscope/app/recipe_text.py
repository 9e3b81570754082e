"""Values of a recipe's YAML text, and their replacement in the text itself, so that comments and order stay.

Knows nothing about what a recipe may say, nor about Streamlit.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from crosscope_proto.recipe_yaml import YamlTextError, load_yaml

Path = Sequence[str | int]
MISSING = object()
"""The value of a field that the text does not have."""


def read(text: str) -> dict[str, Any] | None:
    """The text's mapping; None if it is none."""
    try:
        document = load_yaml(text)
    except YamlTextError:
        return None
    return document if isinstance(document, dict) else None


def value_at(document: object, path: Path) -> object:
    """The value at a path; MISSING if there is none."""
    found: Any = document
    for key in path:
        is_there = key in found if isinstance(found, Mapping) else isinstance(key, int) and _has(found, key)
        if not is_there:
            return MISSING
        found = found[key]
    return found


def _has(entries: object, place: int) -> bool:
    return isinstance(entries, list) and place < len(entries)


def shown(value: object) -> str:
    """A value as it is written in a field; empty for MISSING."""
    if value is MISSING:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value == float(f"{value:g}"):
        return f"{value:g}"
    return _dump(value, flow=True)


def typed(text: str) -> object:
    """The value that a person typed into a field of YAML: a number, a list, a mapping, else the text itself."""
    try:
        return load_yaml(text)
    except YamlTextError:
        return text


def put(text: str, path: Path, value: object) -> str:
    """The text with a value at a path, made if it is not there. `text` must be a mapping (`read`)."""
    wanted = _with(read(text) or {}, path, value)
    return _checked(_put(text, path, value), wanted)


def drop(text: str, path: Path) -> str:
    """The text without the value at a path; unchanged if there is none."""
    document = read(text) or {}
    if value_at(document, path) is MISSING:
        return text
    wanted = deepcopy(document)
    inner: Any = value_at(wanted, path[:-1])
    del inner[path[-1]]
    return _checked(_cut(text, path), wanted)


def written(document: Mapping[str, Any]) -> str:
    """A document as YAML."""
    return yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True)


def _checked(changed: str | None, wanted: dict[str, Any]) -> str:
    """The changed text if it says what is wanted, else the document written anew, without comments."""
    return changed if changed is not None and read(changed) == wanted else written(wanted)


def _with(document: dict[str, Any], path: Path, value: object) -> dict[str, Any]:
    made = deepcopy(document)
    inner: Any = cast("Any", made)
    for key in path[:-1]:
        if not isinstance(value_at(inner, [key]), dict | list):
            inner[key] = {}
        inner = inner[key]
    if isinstance(inner, list) and path[-1] == len(inner):
        inner.append(value)
    else:
        _set(inner, path[-1], value)
    return made


def _set(container: Any, key: str | int, value: object) -> None:
    container[key] = value


def _put(text: str, path: Path, value: object) -> str | None:
    """The changed text, or None where it cannot be changed in its place."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    node, depth = _deepest(root, path)
    if depth == len(path):
        if not isinstance(node, ScalarNode) or isinstance(value, dict | list):
            return None
        return text[: node.start_mark.index] + _dump(value, flow=True) + text[node.end_mark.index :]
    if not isinstance(node, MappingNode) or node.flow_style or not node.value:
        return None
    for key in reversed(path[depth + 1 :]):
        value = {key: value}
    lines = yaml.safe_dump({path[depth]: value}, sort_keys=False, allow_unicode=True).rstrip("\n").splitlines()
    column = node.start_mark.column
    end = text.find("\n", _end(node))
    end = len(text) if end < 0 else end
    return text[:end] + "".join(f"\n{' ' * column}{line}" for line in lines) + text[end:]


def _cut(text: str, path: Path) -> str | None:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    node, depth = _deepest(root, path[:-1])
    if depth != len(path) - 1 or not isinstance(node, MappingNode) or node.flow_style or len(node.value) < 2:
        return None
    for key, value in node.value:
        if isinstance(key, ScalarNode) and key.value == path[-1]:
            start = text.rfind("\n", 0, key.start_mark.index) + 1
            end = text.find("\n", _end(value))
            if text[start : key.start_mark.index].strip():
                return None  # The first key of a list's entry.
            return text[:start] + ("" if end < 0 else text[end + 1 :])
    return None


def _deepest(node: Node | None, path: Path) -> tuple[Node | None, int]:
    """The node farthest along a path, and how many of the path's keys lead to it."""
    for depth, key in enumerate(path):
        inner = None
        if isinstance(node, MappingNode):
            inner = next(
                (value for name, value in node.value if isinstance(name, ScalarNode) and name.value == key), None
            )
        elif isinstance(node, SequenceNode) and isinstance(key, int) and key < len(node.value):
            inner = node.value[key]
        if inner is None:
            return node, depth
        node = inner
    return node, len(path)


def _end(node: Node) -> int:
    """Where the last value of a node ends; the mark of a block's own end lies behind comments."""
    while isinstance(node, MappingNode | SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return node.end_mark.index


def _dump(value: object, *, flow: bool) -> str:
    said = yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True, width=10_000).strip()
    return said.removesuffix("...").strip()
