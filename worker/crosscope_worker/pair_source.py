"""Where the two models of a pair lie, by name, folder or hub id; written down, found again and hashed.

Loads no model: that is pair.py.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

from huggingface_hub import try_to_load_from_cache

from crosscope_proto.artefacts import PAIR_MANIFEST, SCHEMA_VERSION, PairManifest, pair_folder
from crosscope_proto.specs import PairSpec
from crosscope_worker.disk import sha256
from crosscope_worker.work import Tick, idle_tick

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_MODEL_FILES = ("config.json", "*.safetensors")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


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
    base, chat = (_resolve_source(source, home, spec.name) for source in (spec.base, spec.chat))
    for model, source in (("base", base), ("chat", chat)):
        if Path(source).is_absolute() and getattr(spec, f"revision_{model}") is not None:
            raise PairError(f"pair {spec.name!r}: {source} is a folder and has no revisions; drop revision_{model}")
    return PairManifest(
        name=spec.name,
        base=base,
        chat=chat,
        tokenizer=_resolve_source(spec.tokenizer, home, spec.name) if spec.tokenizer else chat,
        dtype=spec.dtype,
        revision_base=spec.revision_base,
        revision_chat=spec.revision_chat,
    )


def find_pair(manifest: PairManifest, home: Path) -> PairManifest:
    """The same pair where it lies now: as the manifest says, or in `home` if that was moved since it was written."""
    sources = [Path(source) for source in (manifest.base, manifest.chat, manifest.tokenizer)]
    if all(source.is_dir() for source in sources if source.is_absolute()):
        return manifest
    try:
        return resolve_pair(PairSpec(name=manifest.name), home)
    except PairError:
        return manifest  # Loading it says which folder is missing.


def write_pair_manifest(home: Path, manifest: PairManifest) -> Path:
    """Writes `<home>/pairs/<name>/pair.json` in one step and returns its path."""
    path = Path(pair_folder(home, manifest.name)) / PAIR_MANIFEST
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile("w", dir=path.parent, prefix=f".{PAIR_MANIFEST}.", delete=False, encoding="utf-8") as file:
        written = Path(file.name)
        try:
            json.dump(asdict(manifest), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
            written.chmod(0o644)
            written.replace(path)
        except BaseException:
            written.unlink(missing_ok=True)
            raise
    return path


def pair_hashes(manifest: PairManifest, tick: Tick = idle_tick) -> dict[str, str]:
    """Content hashes "tokenizer", "base" and "chat"; `tick` hears of the bytes as they are read.

    SHA-256 over a folder's tokenizer or configuration and weight files; for a hub id "commit:" and the commit of its
    revision in the hub's cache, which is what was loaded last, or "None" where the cache does not say it.
    """
    base, chat = model_places(manifest)
    return {
        "tokenizer": _hash_place(tokenizer_place(manifest), _TOKENIZER_FILES, tick),
        "base": _hash_place(base, _MODEL_FILES, tick),
        "chat": _hash_place(chat, _MODEL_FILES, tick),
    }


def _hash_place(place: Place, patterns: tuple[str, ...], tick: Tick) -> str:
    if Path(place.source).is_absolute():
        return _hash_files(Path(place.source), patterns, tick)
    return f"commit:{_cached_commit(place, (name for name in patterns if '*' not in name))}"


def _cached_commit(place: Place, names: Iterable[str]) -> str | None:
    """The commit at which the hub's cache holds one of these files, as `snapshots/<commit>/<name>`."""
    paths = (try_to_load_from_cache(place.source, name, revision=place.revision) for name in names)
    return next((Path(path).parent.name for path in paths if isinstance(path, str)), None)


def _hash_files(folder: Path, patterns: tuple[str, ...], tick: Tick) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        digest.update(f"{path.name}\0{sha256(path, tick)}\n".encode())
    return digest.hexdigest()


def _read_pair_manifest(folder: Path) -> PairManifest:
    path = folder / PAIR_MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = sorted(entry.parent.name for entry in folder.parent.glob(f"*/{PAIR_MANIFEST}"))
        raise PairError(
            f"no pair {folder.name!r} below {folder.parent} (there: {', '.join(known) or 'none'}); "
            "make it first, or give base and chat"
        ) from error
    except (OSError, ValueError) as error:
        raise PairError(f"{path} cannot be read: {error}") from error
    known_keys = {key.name for key in fields(PairManifest)}
    needed = {key.name for key in fields(PairManifest) if key.default is MISSING}
    if not isinstance(document, dict) or not needed <= document.keys() <= known_keys:
        raise PairError(f"{path} is no pair manifest: it needs {sorted(needed)} and may hold {sorted(known_keys)}")
    manifest = PairManifest(**document)
    if manifest.schema_version > SCHEMA_VERSION:
        raise PairError(f"{path} has schema {manifest.schema_version}, newer than {SCHEMA_VERSION}: update crosscope")
    sources = {key: _resolve_source(document[key], folder, manifest.name) for key in ("base", "chat", "tokenizer")}
    return replace(manifest, **sources)


def _resolve_source(source: str, folder: Path, pair: str) -> str:
    """An absolute folder, or a hub id as it stands."""
    path = folder / Path(source).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if Path(source).expanduser().is_absolute() or not _HUB_ID.fullmatch(source) or source.startswith("."):
        raise PairError(f"pair {pair!r}: there is no folder {path}; give a hub id or the folder of a saved model")
    return source


def model_places(manifest: PairManifest) -> tuple[Place, Place]:
    """Where the models lie, base first. A folder has no revisions."""
    base, chat = (
        Place(source, None if Path(source).is_absolute() else revision)
        for source, revision in ((manifest.base, manifest.revision_base), (manifest.chat, manifest.revision_chat))
    )
    return base, chat


def tokenizer_place(manifest: PairManifest) -> Place:
    """Where the pair's tokenizer lies: with the model of that name, the chat model if both have it, or by itself."""
    base, chat = model_places(manifest)
    own = Place(manifest.tokenizer, None)
    return next((model for model in (chat, base) if model.source == manifest.tokenizer), own)


def tokenizer_places(manifest: PairManifest) -> list[Place]:
    """Where tokenizers lie that must agree: the pair's, and each model's own if it has one, without repeats."""
    own = (
        place
        for place in model_places(manifest)
        if not Path(place.source).is_absolute() or (Path(place.source) / "tokenizer_config.json").exists()
    )
    return list(dict.fromkeys((tokenizer_place(manifest), *own)))
