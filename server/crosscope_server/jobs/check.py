"""Checks a recipe before it runs, as far as it can be checked without loading a model.

A wrong field becomes a violation. What is odd, or could not be checked, becomes a warning. Looks only below the roots.
`inputs` reads models and data; `plan` says what a job takes. Knows nothing about gRPC.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from crosscope_proto.artefacts import CURRENT, OWN_PATHS, PAIR_MANIFEST, crosscoder_folder, pair_folder
from crosscope_proto.manifest import ManifestError, parse_pair_manifest
from crosscope_proto.recipe import (
    CausalRecipe,
    CrosscoderRecipe,
    DemoPairRecipe,
    LabelRecipe,
    LookRecipe,
    PublishedRecipe,
    Recipe,
)
from crosscope_proto.roots import Roots
from crosscope_proto.specs import DataSpec
from crosscope_server.errors import Violation
from crosscope_server.jobs.hub import KNOWN, cached_model
from crosscope_server.jobs.inputs import FirstRows, Model, find_files, is_hub_id, read_model, read_rows
from crosscope_server.jobs.labels import over_budget, wrong_fields
from crosscope_server.jobs.layers import layer_warnings
from crosscope_store.shelf import ALONE, Shelf

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
"""Files of a pair that are not brought from a store for a check."""
SAMPLE_ROWS = 200
"""Rows of a data set from which its size in tokens is estimated."""


@dataclass
class Findings:
    """What a check found of the inputs of a recipe."""

    models: dict[str, Model] = field(default_factory=dict)
    """The models that were found, by "base" and "chat"."""
    files: dict[str, list[Path]] = field(default_factory=dict)
    """The files of each data set that was found. Data sets of the hub, and those outside the roots, are not in it."""
    rows: dict[str, FirstRows] = field(default_factory=dict)
    """The first rows of each data set's first file."""
    violations: list[Violation] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def wrong(self, path: str, sentence: str) -> None:
        """Adds a violation of a field."""
        self.violations.append(Violation(path, sentence))


def check(
    recipe: Recipe, home: Path, roots: Sequence[Path] = (), *, after_others: bool = False, shelf: Shelf = ALONE
) -> Findings:
    """What was found of a recipe's inputs below `home` and `roots`.

    `after_others` says that the job waits for other jobs. These may make a pair or data, so missing ones are warnings.
    """
    found = Findings()
    if isinstance(recipe, DemoPairRecipe):
        return found
    if isinstance(recipe, CausalRecipe | LabelRecipe):
        is_there = _check_crosscoder(recipe.name, home, found, after_others=after_others)
        if isinstance(recipe, LabelRecipe):
            found.warnings.extend(over_budget(recipe))
            if is_there:
                _check_labels(recipe, home, found)
        return found
    may_look = Roots((home, *roots), [home / name for name in OWN_PATHS])
    looker = _Looker(recipe, home, may_look, found, after_others, shelf)
    steps: list[tuple[str, Callable[[], None]]] = [("pair", looker.pair)]
    steps += [(f"data.{i}", partial(looker.data, f"data.{i}", spec)) for i, spec in enumerate(recipe.data)]
    if isinstance(recipe, PublishedRecipe):
        steps.append(("path", partial(looker.published, recipe)))
    if not isinstance(recipe, LookRecipe):
        steps.append(("layer", lambda: found.warnings.extend(layer_warnings(recipe, home, may_look, shelf))))
    for where, step in steps:
        try:
            step()
        except OSError as error:  # for instance a folder without permission
            found.warnings.append(f"{where} could not be checked: {error.strerror or error}")
    return found


def _check_labels(recipe: LabelRecipe, home: Path, found: Findings) -> None:
    try:
        for path, sentence in wrong_fields(recipe, home):
            found.wrong(path, sentence)
    except (OSError, UnicodeDecodeError) as error:
        found.warnings.append(f"the crosscoder {recipe.name!r} could not be checked: {error}")


def _check_crosscoder(name: str, home: Path, found: Findings, *, after_others: bool) -> bool:
    """Checks that a crosscoder is published, and says whether it is."""
    folder = Path(crosscoder_folder(home, name))
    if (folder / CURRENT).is_file():
        return True
    if after_others:
        found.warnings.append(f"there is no crosscoder {name!r} yet; a job before this one must make it")
        return False
    known = sorted(each.parent.name for each in folder.parent.glob(f"*/{CURRENT}"))
    there = ", ".join(known[:20]) or "none"
    found.wrong("name", f"there is no crosscoder {name!r} (there: {there}); train it, or import it as published")
    return False


class _Looker:
    def __init__(
        self,
        recipe: CrosscoderRecipe | PublishedRecipe | LookRecipe,
        home: Path,
        roots: Roots,
        found: Findings,
        after_others: bool,
        shelf: Shelf,
    ) -> None:
        self._recipe, self._home, self._roots, self._found = recipe, home, roots, found
        self._after_others, self._shelf = after_others, shelf
        self._pair_folder = Path(pair_folder(home, recipe.pair.name))

    def pair(self) -> None:
        """Checks that both models exist, have weights, and have the recipe's layer."""
        pair = self._recipe.pair
        self._shelf.need_all(self._pair_folder, but=WEIGHTS)
        sources: Mapping[str, Any] = {"base": pair.base, "chat": pair.chat, "tokenizer": pair.tokenizer}
        folder, prefix = self._home, "pair"
        if pair.base is None:
            sources, folder, prefix = self._manifest(), self._pair_folder, "pair.name"
        for name in ("base", "chat", "tokenizer"):
            if (source := sources.get(name)) is not None:
                where = f"{prefix}.{name}" if prefix == "pair" else prefix
                self._model(name, where, source, folder)

    def _manifest(self) -> Mapping[str, Any]:
        path = self._pair_folder / PAIR_MANIFEST
        try:
            if not self._roots.allows(path):
                return {}
            manifest = parse_pair_manifest(path.read_bytes())
        except FileNotFoundError:
            name = self._recipe.pair.name
            if self._after_others:
                self._found.warnings.append(f"there is no pair {name!r} yet; a job before this one must make it")
                return {}
            known = sorted(each.parent.name for each in self._pair_folder.parent.glob(f"*/{PAIR_MANIFEST}"))
            there = ", ".join(known[:20]) or "none"
            self._found.wrong(
                "pair.name", f"there is no pair {name!r} (there: {there}); make it, or give base and chat"
            )
            return {}
        except OSError as error:
            self._found.wrong("pair.name", f"{path} cannot be read: {error.strerror}")
            return {}
        except ManifestError as error:
            self._found.wrong("pair.name", f"{path}: {error}")
            return {}
        return {"base": manifest.base, "chat": manifest.chat, "tokenizer": manifest.tokenizer}

    def _model(self, name: str, where: str, source: object, folder: Path) -> None:
        if not isinstance(source, str):
            self._found.warnings.append(f"{where} is not checked: it is made of several parts")
            return
        path = folder / Path(source).expanduser()
        if not self._roots.allows(path):
            self._unseen(where, source)
        elif not path.is_dir():
            if Path(source).expanduser().is_absolute() or source.startswith(".") or not is_hub_id(source):
                self._found.wrong(where, f"there is no folder {path}; give a hub id or the folder of a saved model")
            else:
                self._on_hub(name, where, source)
        elif name != "tokenizer":
            self._config(name, where, path)

    def _on_hub(self, name: str, where: str, source: str) -> None:
        """Takes what this machine knows of a model of the hub: its cache, else the table of published models."""
        revision = None if name == "tokenizer" else getattr(self._recipe.pair, f"revision_{name}")
        model = cached_model(source, revision)
        if model is None:
            self._found.warnings.append(f"{where} {source} is a hub id; the hub was not asked whether it exists")
            model = KNOWN.get(source)
        if model is not None and name != "tokenizer":
            self._found.models[name] = model
            self._layers(name, model)

    def _config(self, name: str, where: str, path: Path) -> None:
        if getattr(self._recipe.pair, f"revision_{name}") is not None:
            self._found.wrong(
                f"pair.revision_{name}", f"{path} is a folder, and folders have no revisions; leave it out"
            )
        below = f"{path.relative_to(self._pair_folder).as_posix()}/" if self._pair_folder in path.parents else None
        coming = self._shelf.sizes(self._pair_folder) if below else {}
        model = read_model(path, {name.removeprefix(below or ""): size for name, size in coming.items()})
        if isinstance(model, str):
            self._found.wrong(where, model)
            return
        self._found.models[name] = model
        self._layers(name, model)

    def _layers(self, name: str, model: Model) -> None:
        """Checks that a model has the recipe's layer."""
        if isinstance(self._recipe, LookRecipe):
            return
        layer = self._recipe.layer
        if model.num_layers is None:
            self._found.warnings.append(
                f"layer is not checked: config.json of the {name} model names no number of layers"
            )
        elif layer >= model.num_layers:
            last = model.num_layers - 1
            said = f"the {name} model has {model.num_layers} layers, 0 to {last}, but the recipe says {layer}"
            self._found.wrong("layer", said)

    def data(self, where: str, spec: DataSpec) -> None:
        """Checks that a data set exists, has its columns, and has enough texts to hold one out."""
        if spec.source == "hub":
            if not is_hub_id(spec.path):
                self._found.wrong(f"{where}.path", f"{spec.path!r} is not a hub id; write owner/name")
            else:
                said = f"data set {spec.name!r} comes from the hub, which was not asked whether {spec.path} exists"
                self._found.warnings.append(said)
            return
        files = find_files(spec.path, (self._pair_folder, self._home), self._roots)
        if files is None:
            self._unseen(f"{where}.path", spec.path)
            return
        if not files:
            if self._after_others:
                said = f"{where}.path: no file matches {spec.path} yet; a job before this one must make it"
                self._found.warnings.append(said)
            else:
                looked = f"{self._pair_folder} or {self._home}"
                self._found.wrong(f"{where}.path", f"no file matches {spec.path} in {looked}")
            return
        self._found.files[spec.name] = files
        every = 1 if isinstance(self._recipe, LookRecipe) else self._recipe.tokens.held_out_every
        rows = read_rows(files[0], spec.source, max(SAMPLE_ROWS, every))
        if isinstance(rows, str):
            self._found.wrong(f"{where}.path", rows)
            return
        self._found.rows[spec.name] = rows
        for path, sentence in _wrong_columns(spec, rows):
            self._found.wrong(f"{where}.{path}", sentence)
        if len(files) == 1 and rows.num_rows is not None and rows.num_rows < every:
            said = f"{files[0]} has {rows.num_rows} texts, and only every {every}-th is held out for the analysis; "
            self._found.wrong(f"{where}.path", f"{said}lower tokens.held_out_every or add texts")

    def published(self, recipe: PublishedRecipe) -> None:
        """Checks that the weights that a recipe measures exist."""
        path = self._home / Path(recipe.path).expanduser()
        if not self._roots.allows(path):
            self._unseen("path", recipe.path)
        elif path.exists():
            if recipe.revision is not None:
                self._found.wrong("revision", f"{path} lies on this machine and has no revisions; leave revision out")
        elif Path(recipe.path).expanduser().is_absolute() or recipe.path.startswith("."):
            self._found.wrong("path", f"there is no crosscoder {path}")
        elif not is_hub_id("/".join(recipe.path.strip("/").split("/")[:2])):
            self._found.wrong("path", f"there is no {path}, and {recipe.path!r} is not a hub id")
        else:
            self._found.warnings.append(f"path {recipe.path} is a hub id; the hub was not asked whether it exists")

    def _unseen(self, where: str, path: str) -> None:
        said = f"{where} is not checked: {path} lies outside the folders that the server may look into"
        self._found.warnings.append(said)


def _wrong_columns(spec: DataSpec, rows: FirstRows) -> Iterator[tuple[str, str]]:
    """The fields of a data set that do not fit its first row, each with a sentence."""
    first = rows.first[0] if rows.first else None
    known = rows.columns or (None if first is None else tuple(map(str, first)))
    if known is None:
        yield "path", "its first file has no row"
        return
    for name in ("text_column", "chat_column", "behaviours_column"):
        column = getattr(spec, name)
        if column and spec.source != "text" and column not in known:
            yield name, f"there is no column {column!r}; there are {', '.join(known[:50])}"
    if first is None:
        return
    if (column := spec.text_column) and column in first and not isinstance(first[column], str):
        yield "text_column", f"{column!r} holds {type(first[column]).__name__}, not text"
    if (column := spec.chat_column) and column in first and spec.format == "messages":
        yield from _wrong_turns(spec, first[column])


def _wrong_turns(spec: DataSpec, turns: object) -> Iterator[tuple[str, str]]:
    if not isinstance(turns, list):
        yield "chat_column", f"{spec.chat_column!r} holds {type(turns).__name__}, not a list of messages"
    elif turns and not spec.skip_refused:
        turn = turns[0]
        keys = ", ".join(map(str, turn))[:200] if isinstance(turn, dict) else type(turn).__name__
        for name in ("role_key", "content_key"):
            if not isinstance(turn, dict) or not isinstance(turn.get(getattr(spec, name)), str):
                yield name, f"{getattr(spec, name)!r} must be a text in every message; the first message has {keys}"
