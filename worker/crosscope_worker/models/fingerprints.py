"""Content hashes of a pair's files, by which a crosscoder knows the models that it was trained on.

Loads no model, and does not know who compares the hashes.
"""

import hashlib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from crosscope_proto.artefacts import PairManifest
from crosscope_worker.disk import sha256
from crosscope_worker.models.places import Place, adapter_place, model_places, tokenizer_place
from crosscope_worker.ticks import Tick, idle_tick

UNKNOWN = "commit:None"
"""The hash of a hub id whose commit is not in the hub's cache."""
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
_MODEL_FILES = ("config.json", *WEIGHTS, "*.index.json")
_ADAPTER_FILES = ("adapter_config.json", *WEIGHTS)
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "*chat_templates/*.jinja",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
_TRAINING_STATE = ("optimizer*", "scheduler*", "rng_state*", "scaler*", "training_args*")
"""What a trainer leaves beside the weights; no model is loaded from it."""
_EARLIER_FILES = {
    "tokenizer": ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
    "base": ("config.json", "*.safetensors"),
    "chat": ("config.json", "*.safetensors"),
}
"""The files that the first published versions hashed."""


def pair_hashes(manifest: PairManifest, tick: Tick = idle_tick) -> dict[str, str]:
    """Content hashes "tokenizer", "base" and "chat", and "adapter" where the chat model has one.

    For a folder: SHA-256 over its tokenizer files, or over its configuration and all its weight files. For a hub id:
    "commit:" and the commit of its revision in the hub's cache, which was loaded last; UNKNOWN if the cache has none.
    `tick` hears of the bytes as they are read.
    """
    files = {
        "tokenizer": _TOKENIZER_FILES,
        "base": _MODEL_FILES,
        "chat": _MODEL_FILES,
        "adapter": _ADAPTER_FILES,
    }
    known: dict[tuple[Place, tuple[str, ...]], str] = {}
    hashes: dict[str, str] = {}
    for name, place in _places(manifest).items():
        key = place, files[name]
        if key not in known:  # An adapter's chat model is often the base model itself.
            known[key] = _hash_place(*key, tick)
        hashes[name] = known[key]
    return hashes


def changed_parts(manifest: PairManifest, expected: Mapping[str, str]) -> list[str]:
    """The names in `expected` whose hash the pair's files do not have.

    The first published versions hashed fewer files; such a hash is compared over those files.
    """
    found = pair_hashes(manifest) if expected else {}
    places = _places(manifest)
    different = [name for name in found.keys() & expected.keys() if found[name] != expected[name]]
    return sorted(
        name
        for name in different
        if name not in _EARLIER_FILES or _hash_place(places[name], _EARLIER_FILES[name]) != expected[name]
    )


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a saved model or adapter, by name."""
    return _files(folder, WEIGHTS)


def _places(manifest: PairManifest) -> dict[str, Place]:
    base, chat = model_places(manifest)
    places = {"tokenizer": tokenizer_place(manifest), "base": base, "chat": chat}
    adapter = adapter_place(manifest)
    return places if adapter is None else places | {"adapter": adapter}


def _hash_place(place: Place, patterns: tuple[str, ...], tick: Tick = idle_tick) -> str:
    if Path(place.source).is_absolute():
        return _hash_files(Path(place.source), patterns, tick)
    return f"commit:{_cached_commit(place, (name for name in patterns if '*' not in name))}"


def _cached_commit(place: Place, names: Iterable[str]) -> str | None:
    """The commit at which the hub's cache holds one of these files, as `snapshots/<commit>/<name>`."""
    paths = (try_to_load_from_cache(place.source, name, revision=place.revision) for name in names)
    return next((Path(path).parent.name for path in paths if isinstance(path, str)), None)


def _hash_files(folder: Path, patterns: tuple[str, ...], tick: Tick) -> str:
    digest = hashlib.sha256()
    for path in _files(folder, patterns):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256(path, tick)}\n".encode())
    return digest.hexdigest()


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if not any(fnmatch(path.name, state) for state in _TRAINING_STATE))
