"""Finds where the two models of a pair lie, by name, folder or hub id, also after they have moved.

Loads no model; pair.py does.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from crosscope_proto.artefacts import PAIR_MANIFEST, PairManifest, pair_folder
from crosscope_proto.manifest import ManifestError, parse_pair_manifest
from crosscope_proto.specs import TOKENIZER_WORDS, AdapterSpec, PairSpec

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""A folder with one of these has a tokenizer."""


class PairError(ValueError):
    """Two models that cannot be loaded or compared; the sentence says which and why."""


class Place(NamedTuple):
    """Where a model or tokenizer lies: a folder, or a hub id and its revision."""

    source: str
    revision: str | None

    def __str__(self) -> str:
        return self.source if self.revision is None else f"{self.source} at revision {self.revision}"


def resolve_pair(spec: PairSpec, home: Path) -> PairManifest:
    """The manifest of a pair, with absolute folders or hub ids. Loads and writes nothing.

    A spec with only a name is read from `<home>/pairs/<name>/pair.json`. A relative folder of a spec is looked up in
    the home folder. Raises PairError if the pair or a folder does not exist.
    """
    if spec.base is None or spec.chat is None:
        return _read_pair_manifest(Path(pair_folder(home, spec.name)))
    adapter = spec.chat if isinstance(spec.chat, AdapterSpec) else None
    base = _resolve_source(spec.base, home, spec.name)
    chat_source = spec.chat if isinstance(spec.chat, str) else spec.chat.base
    chat = base if chat_source is None else _resolve_source(chat_source, home, spec.name)
    manifest = PairManifest(
        name=spec.name,
        base=base,
        chat=chat,
        tokenizer="",
        dtype=spec.dtype,
        revision_base=spec.revision_base,
        revision_chat=spec.revision_base if chat_source is None else spec.revision_chat,
        adapter=adapter and _resolve_source(adapter.adapter, home, spec.name, "a saved adapter"),
        adapter_revision=adapter and adapter.revision,
        adapter_base_given=adapter is not None and adapter.base is not None,
        adapter_merged=adapter is not None and adapter.merged,
        token_names=spec.tokenizer if spec.tokenizer in TOKENIZER_WORDS else None,
    )
    _check_revisions(spec, manifest)
    return replace(manifest, tokenizer=_resolve_tokenizer(spec, manifest, home))


def _check_revisions(spec: PairSpec, manifest: PairManifest) -> None:
    given = (
        (manifest.base, spec.revision_base, "revision_base"),
        (manifest.chat, spec.revision_chat, "revision_chat"),
        (manifest.adapter, manifest.adapter_revision, "chat.revision"),
    )
    for source, revision, field in given:
        if source is not None and Path(source).is_absolute() and revision is not None:
            raise PairError(f"pair {spec.name!r}: {source} is a folder and has no revisions; drop {field}")


def _resolve_tokenizer(spec: PairSpec, manifest: PairManifest, home: Path) -> str:
    """Where the tokenizer lies: as the spec says, else with the adapter if it has one, else with the chat model."""
    if spec.tokenizer == "base":
        return manifest.base
    if spec.tokenizer not in (None, "chat"):
        return _resolve_source(spec.tokenizer, home, spec.name)
    return manifest.adapter if manifest.adapter and _has_tokenizer(manifest.adapter) else manifest.chat


def _has_tokenizer(source: str) -> bool:
    """Whether a folder holds a tokenizer; never a hub id."""
    return Path(source).is_absolute() and any((Path(source) / name).exists() for name in TOKENIZER_FILES)


def check_folder(source: str, what: str, pair: str) -> None:
    """Raises PairError for a folder that does not exist; a hub id passes."""
    if Path(source).is_absolute() and not Path(source).is_dir():
        raise PairError(f"pair {pair!r}: the folder of the {what} does not exist: {source}")


def find_pair(manifest: PairManifest, home: Path) -> PairManifest:
    """The same pair where it lies now: as the manifest says, or in `home` if `home` has moved since."""
    places = (manifest.base, manifest.chat, manifest.tokenizer, manifest.adapter)
    sources = [Path(source) for source in places if source is not None]
    if all(source.is_dir() for source in sources if source.is_absolute()):
        return manifest
    try:
        return resolve_pair(PairSpec(name=manifest.name), home)
    except PairError:
        return manifest  # Loading it says which folder is missing.


def _read_pair_manifest(folder: Path) -> PairManifest:
    path = folder / PAIR_MANIFEST
    try:
        manifest = parse_pair_manifest(path.read_bytes())
    except FileNotFoundError as error:
        known = sorted(entry.parent.name for entry in folder.parent.glob(f"*/{PAIR_MANIFEST}"))
        raise PairError(
            f"no pair {folder.name!r} below {folder.parent} (there: {', '.join(known) or 'none'}); "
            "make it first, or give base and chat"
        ) from error
    except OSError as error:
        raise PairError(f"{path} cannot be read: {error.strerror}") from error
    except ManifestError as error:
        raise PairError(f"{path}: {error}") from error
    base, chat, tokenizer = (
        _resolve_source(source, folder, manifest.name) for source in (manifest.base, manifest.chat, manifest.tokenizer)
    )
    adapter = manifest.adapter and _resolve_source(manifest.adapter, folder, manifest.name)
    return replace(manifest, base=base, chat=chat, tokenizer=tokenizer, adapter=adapter)


def _resolve_source(source: str, folder: Path, pair: str, what: str = "a saved model") -> str:
    """An absolute folder, or a hub id as it stands."""
    path = folder / Path(source).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if Path(source).expanduser().is_absolute() or not _HUB_ID.fullmatch(source) or source.startswith("."):
        raise PairError(f"pair {pair!r}: there is no folder {path}; give a hub id or the folder of {what}")
    return source


def model_places(manifest: PairManifest) -> tuple[Place, Place]:
    """Where the models lie, base first. A folder has no revisions."""
    base, chat = (
        Place(source, None if Path(source).is_absolute() else revision)
        for source, revision in ((manifest.base, manifest.revision_base), (manifest.chat, manifest.revision_chat))
    )
    return base, chat


def adapter_place(manifest: PairManifest) -> Place | None:
    """Where the chat model's adapter lies; None where it has none."""
    if manifest.adapter is None:
        return None
    return Place(manifest.adapter, None if Path(manifest.adapter).is_absolute() else manifest.adapter_revision)


def tokenizer_place(manifest: PairManifest) -> Place:
    """Where the pair's tokenizer lies: at the model that it is named after (chat if both), or by itself."""
    base, chat = model_places(manifest)
    models = (adapter_place(manifest), chat, base)
    own = Place(manifest.tokenizer, None)
    return next((model for model in models if model is not None and model.source == manifest.tokenizer), own)


def tokenizer_places(manifest: PairManifest) -> list[Place]:
    """Where the tokenizers lie that must agree: the pair's and each model's own if it has one, without repeats."""
    own = (
        place
        for place in model_places(manifest)
        if not Path(place.source).is_absolute() or (Path(place.source) / "tokenizer_config.json").exists()
    )
    return list(dict.fromkeys((tokenizer_place(manifest), *own)))
