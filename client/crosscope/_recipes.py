"""The text of a recipe that a caller gave as a path, as text or as a dict. Does not know what a recipe may say."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from crosscope._errors import InvalidInput
from crosscope._prompts import check_text
from crosscope_proto.recipe_yaml import YamlTextError, load_yaml

_FILE_SOURCES = frozenset({"jsonl", "parquet", "text"})


def recipe_text(recipe: str | Path | Mapping[str, object]) -> str:
    """The YAML text of a recipe given as a path, as text or as a dict. Raises InvalidInput."""
    if isinstance(recipe, Mapping):
        return check_text(_dump(recipe), "recipe")
    if isinstance(recipe, Path) or not _looks_like_yaml(check_text(recipe, "recipe")):
        return _file(Path(recipe))
    return recipe


def recipe_folder(recipe: str | Path | Mapping[str, object]) -> str:
    """The absolute folder of a recipe that was given as a path; "" for a recipe given as text or as a dict."""
    if isinstance(recipe, Mapping) or (isinstance(recipe, str) and _looks_like_yaml(recipe)):
        return ""
    return str(Path(recipe).expanduser().resolve().parent)


def _looks_like_yaml(text: str) -> bool:
    return "\n" in text or ": " in text or text.lstrip().startswith("{") or not text.strip()


def _dump(recipe: Mapping[str, object]) -> str:
    try:
        return yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidInput.of("recipe", f"holds a value that YAML cannot: {' '.join(str(error).split())}") from error


def _file(path: Path) -> str:
    try:
        text = check_text(path.expanduser().read_text(encoding="utf-8"), "recipe")
    except OSError as error:
        raise InvalidInput.of("recipe", f"cannot read {str(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput.of("recipe", f"{str(path)!r} is not UTF-8 at byte {error.start}") from error
    return _with_absolute_paths(text, path.expanduser().resolve().parent)


def _with_absolute_paths(text: str, folder: Path) -> str:
    """The recipe with absolute paths to the data and the crosscoder that lie beside it; else as it was written."""
    try:
        document = load_yaml(text)
    except YamlTextError:
        return text  # the server says what is wrong
    if not isinstance(document, dict):
        return text
    changed = False
    data = document.get("data")
    of_files = [spec for spec in data if _is_of_files(spec)] if isinstance(data, list) else []
    for section in [document, *of_files]:
        path = section.get("path")
        if isinstance(path, str) and not Path(path).is_absolute() and _exists(folder, path):
            section["path"] = str(folder / path)
            changed = True
    return _dump(document) if changed else text


def _is_of_files(spec: object) -> bool:
    return isinstance(spec, dict) and spec.get("source") in _FILE_SOURCES


def _exists(folder: Path, pattern: str) -> bool:
    if (folder / pattern).exists():
        return True
    try:
        return any(folder.glob(pattern))
    except (ValueError, NotImplementedError):
        return False
