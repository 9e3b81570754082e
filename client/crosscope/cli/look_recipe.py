"""The recipe of a look, from a pair and data files or from another recipe. Reads local files; asks no server."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from crosscope._recipes import recipe_text
from crosscope_proto.artefacts import NAME_PATTERN
from crosscope_proto.recipe_yaml import YamlTextError, load_yaml

_CHATS = ("messages", "conversation", "conversations", "turns", "chat")
"""Columns that hold conversations, as they are usually called."""
_TEXTS = ("text", "content", "document")
_SOURCES = {".jsonl": "jsonl", ".parquet": "parquet", ".txt": "text"}
_TAKEN = ("pair", "data", "chat_template_date", "chat_template_kwargs")
"""Fields that a look takes from a recipe of another kind."""
_TOKENS = ("max_length", "skip_bos", "skip_first")
_MOST_BYTES = 1 << 24
"""Limit of the first line of a file."""


def look_recipe(pair: str, data: Sequence[str], columns: Mapping[str, str]) -> dict[str, Any]:
    """A recipe of kind look. `pair` is a pair's name, or a recipe file; `data` are data files or recipe files.

    `columns` may hold text_column or chat_column for data files; otherwise the first line of each tells. Raises
    UsageError.
    """
    found: dict[str, Any] = {"pair": {"name": pair}, "data": []}
    if _is_recipe(pair):
        given = _of_file(pair)
        if given.get("kind") == "look" and not data:
            return given
        found = _taken(given, pair)
        if data:
            found["data"] = []
    elif not re.fullmatch(NAME_PATTERN, pair):
        raise click.UsageError(f"{pair!r} is neither the name of a pair nor a recipe file (.yaml)")
    for path in data:
        if _is_recipe(path):
            other = _taken(_of_file(path), path)
            same = isinstance(other["pair"], dict) and other["pair"].get("name") == pair
            pair_spec = other["pair"] if same else found["pair"]
            found = {**found, **other, "pair": pair_spec, "data": [*found["data"], *other["data"]]}
        else:
            found["data"].append(_data_spec(Path(path), columns))
    if not found["data"]:
        raise click.UsageError("give data: JSONL, Parquet or text files, or a recipe whose data are read")
    name = found["pair"].get("name", "look") if isinstance(found["pair"], dict) else "look"
    return {"kind": "look", "name": name, **found, "data": _named_apart(found["data"])}


def _is_recipe(path: str) -> bool:
    return path.endswith((".yaml", ".yml"))


def _of_file(path: str) -> dict[str, Any]:
    try:
        document = load_yaml(recipe_text(Path(path)))
    except YamlTextError as error:
        raise click.UsageError(f"{path}: {error}") from error
    if not isinstance(document, dict) or "pair" not in document or not isinstance(document.get("data"), list):
        raise click.UsageError(f"{path} is no recipe with a pair and data")
    return document


def _taken(recipe: Mapping[str, Any], path: str) -> dict[str, Any]:
    found = {name: recipe[name] for name in _TAKEN if name in recipe}
    tokens = recipe.get("tokens")
    if isinstance(tokens, dict) and (kept := {name: tokens[name] for name in _TOKENS if name in tokens}):
        found["tokens"] = kept
    if not all(isinstance(spec, dict) for spec in found["data"]):
        raise click.UsageError(f"{path}: data must be a list of data sets")
    return found


def _data_spec(path: Path, columns: Mapping[str, str]) -> dict[str, Any]:
    """A data set of one file. Its columns are those given, or those that its first line has."""
    source = _SOURCES.get(path.suffix)
    if source is None:
        known = ", ".join(_SOURCES)
        raise click.UsageError(f"{path} must be a file {known}, or a recipe .yaml; a recipe can name any other data")
    if not path.is_file():
        raise click.UsageError(f"there is no file {path}")
    spec: dict[str, Any] = {"name": _name(path), "source": source, "path": str(path.resolve())}
    if source == "text":
        return spec
    if columns:
        return {**spec, **columns}
    if source == "parquet":
        raise click.UsageError(f"{path}: say which column holds the texts: --text-column or --chat-column")
    return {**spec, **_guessed(path)}


def _guessed(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8") as file:
            row = json.loads(file.readline(_MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise click.UsageError(f"{path}: its first line is no JSON object: {' '.join(str(error).split())}") from error
    if not isinstance(row, dict):
        raise click.UsageError(f"{path}: its first line is no JSON object")
    if "instruction" in row and "output" in row:
        return {"format": "alpaca"}
    for column in _CHATS:
        turns = row.get(column)
        if isinstance(turns, list) and turns and isinstance(turns[0], dict):
            return {"chat_column": column} | ({"format": "sharegpt"} if "from" in turns[0] else {})
    for column in _TEXTS:
        if isinstance(row.get(column), str):
            return {"text_column": column}
    there = ", ".join(map(str, row))[:200]
    way_out = "give --text-column or --chat-column"
    raise click.UsageError(f"{path}: no column is known to hold texts (there: {there}); {way_out}")


def _name(path: Path) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._")[:90] or "data"


def _named_apart(data: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The data sets; of those with one name, the second and further ones get a number."""
    seen: dict[object, int] = {}
    found: list[dict[str, Any]] = []
    for spec in data:
        name = spec.get("name")
        seen[name] = seen.get(name, 0) + 1
        found.append({**spec, "name": f"{name}-{seen[name]}"} if seen[name] > 1 else dict(spec))
    return found
